"""The ASGI application: the routes and the middleware around them."""

from __future__ import annotations

from functools import cache
from typing import NoReturn

from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Router
from starlette.types import Receive, Scope, Send

from gateway.api.chat import ROUTE as CHAT
from gateway.api.chat import ChatCompletions
from gateway.api.completions import ROUTE as COMPLETIONS
from gateway.api.completions import Completions
from gateway.api.embeddings import ROUTE as EMBEDDINGS
from gateway.api.embeddings import Embeddings
from gateway.api.lora import LOAD_ROUTE as LOAD_LORA
from gateway.api.lora import UNLOAD_ROUTE as UNLOAD_LORA
from gateway.api.lora import LoraAdapters
from gateway.api.messages import COUNT_ROUTE as COUNT_TOKENS
from gateway.api.messages import ROUTE as MESSAGES
from gateway.api.messages import Messages
from gateway.api.models import Models
from gateway.api.page import STATIC_FILES, Page
from gateway.api.probes import Probes
from gateway.api.responses import CANCEL_ROUTE as RESPONSE_CANCEL
from gateway.api.responses import INPUT_ROUTE as RESPONSE_INPUT
from gateway.api.responses import ONE_ROUTE as RESPONSE
from gateway.api.responses import ROUTE as RESPONSES
from gateway.api.responses import Responses
from gateway.api.search import EXAMPLES_ROUTE as SEARCH_EXAMPLES
from gateway.api.search import ROUTE as SEARCH
from gateway.api.search import STREAM_ROUTE as SEARCH_STREAM
from gateway.api.search import SearchEndpoint
from gateway.api.similarity import RERANK_ROUTES, SCORE_ROUTES, Similarity
from gateway.api.tokenize import DETOKENIZE_ROUTE, TOKENIZE_ROUTE, Tokenize
from gateway.api.validate import ROUTE as VALIDATE
from gateway.api.validate import ValidateEndpoint
from gateway.dependencies import Dependencies
from gateway.http.errors import HttpError
from gateway.http.json_text import json_response
from gateway.http.openapi import openapi
from gateway.http.routes import ApiRoute, Operation
from gateway.middleware.auth import AuthMiddleware
from gateway.middleware.drain import DrainMiddleware
from gateway.middleware.observe import ObserveMiddleware
from gateway.middleware.origin import OriginMiddleware
from gateway.observability.request_record import SlowThresholds
from gateway.schemas.anthropic.answers import AnthropicError, Message, TokensCount
from gateway.schemas.anthropic.messages import CountTokensRequest, MessagesRequest
from gateway.schemas.chat import ChatCompletion, ChatCompletionRequest
from gateway.schemas.completions import Completion, CompletionRequest
from gateway.schemas.embeddings import EmbeddingList, EmbeddingRequest
from gateway.schemas.lora import LoadLoraRequest, UnloadLoraRequest
from gateway.schemas.models import Model, ModelList
from gateway.schemas.responses.answer import DeletedResponse, InputItemList, ResponseAnswer
from gateway.schemas.responses.queries import InputItemsQuery, RetrieveQuery
from gateway.schemas.responses.request import ResponsesRequest
from gateway.schemas.search import ExamplesAnswer, SearchAnswer, SearchRequest, ValidationAnswer
from gateway.schemas.similarity import (
    RerankAnswer,
    RerankRequest,
    ScoreAnswer,
    ScoreRequest,
)
from gateway.schemas.tokenize import (
    DetokenizeAnswer,
    DetokenizeRequest,
    TokenizeAnswer,
    TokenizeRequest,
)

READ = ("GET", "HEAD")


def build_app(dependencies: Dependencies) -> Router:
    """The application of one gateway."""
    settings = dependencies.settings
    routes = [*_api_routes(dependencies), *_page_routes(settings.trace_url_template)]
    # Generated at the first request: that is slower than the rest of this function.
    document = cache(lambda: openapi(routes, secured=dependencies.keys.required))

    async def describe(request: Request) -> Response:
        return json_response(document())

    routes.append(ApiRoute("/openapi.json", describe))
    open_paths = [r.path for r in routes if r.operation is None or not r.operation.secured]
    # A Router instead of a Starlette application, whose two exception middlewares every event of a
    # stream would pass: `ObserveMiddleware` turns all exceptions into responses.
    return Router(
        routes,
        # A redirect would turn a POST into a GET.
        redirect_slashes=False,
        default=_no_route,
        middleware=[
            Middleware(
                ObserveMiddleware,
                timeout_seconds=settings.request_timeout_seconds,
                first_token_seconds=settings.first_token_timeout_seconds or None,
                idle_seconds=settings.idle_timeout_seconds or None,
                slow=SlowThresholds(
                    settings.slow_first_token_seconds, settings.slow_request_seconds
                ),
            ),
            Middleware(
                OriginMiddleware, hosts=settings.allowed_host_list, origins=settings.origin_list
            ),
            Middleware(DrainMiddleware, drain=dependencies.drain),
            Middleware(AuthMiddleware, keys=dependencies.keys, open_paths=open_paths),
        ],
    )


def _api_routes(dependencies: Dependencies) -> list[ApiRoute]:
    return [
        *_search_routes(dependencies),
        *_openai_routes(dependencies),
        *_anthropic_routes(dependencies),
        *_tokenizer_routes(dependencies),
        *(_lora_routes(dependencies) if dependencies.settings.allow_runtime_lora else ()),
        *_similarity_routes(dependencies),
        *_responses_routes(dependencies),
        *_probe_routes(dependencies),
    ]


def _search_routes(dependencies: Dependencies) -> list[ApiRoute]:
    search, validate = SearchEndpoint(dependencies), ValidateEndpoint(dependencies)
    summary = "Find documents and summarise them."
    by_query = Operation(
        summary=summary, query=SearchRequest, answer=SearchAnswer, streams=True, secured=True
    )
    by_body = Operation(
        summary=summary, body=SearchRequest, answer=SearchAnswer, streams=True, secured=True
    )
    stop = Operation(summary="Stop a resumable search.", status=204, secured=True)
    examples = Operation(
        summary="Suggest questions that the documents answer.",
        answer=ExamplesAnswer,
        secured=True,
    )
    check = Operation(
        summary="Validate a search without running it.",
        body=SearchRequest,
        answer=ValidationAnswer,
        secured=True,
    )
    return [
        ApiRoute(SEARCH, search.get, by_query),
        ApiRoute(SEARCH, search.post, by_body, methods=("POST",)),
        ApiRoute(SEARCH_STREAM, search.stop, stop, methods=("DELETE",)),
        ApiRoute(SEARCH_EXAMPLES, search.examples, examples),
        ApiRoute(VALIDATE, validate.check, check, methods=("POST",)),
    ]


def _openai_routes(dependencies: Dependencies) -> list[ApiRoute]:
    models = Models(dependencies)
    chat = Operation(
        summary="Continue a conversation.",
        body=ChatCompletionRequest,
        answer=ChatCompletion,
        streams=True,
        secured=True,
    )
    completion = Operation(
        summary="Continue a text.",
        body=CompletionRequest,
        answer=Completion,
        streams=True,
        secured=True,
    )
    embedding = Operation(
        summary="Embed texts.", body=EmbeddingRequest, answer=EmbeddingList, secured=True
    )
    list_models = Operation(summary="List the served models.", answer=ModelList, secured=True)
    get_model = Operation(summary="Describe a served model.", answer=Model, secured=True)
    return [
        ApiRoute(CHAT, ChatCompletions(dependencies).create, chat, methods=("POST",)),
        ApiRoute(COMPLETIONS, Completions(dependencies).create, completion, methods=("POST",)),
        ApiRoute(EMBEDDINGS, Embeddings(dependencies).create, embedding, methods=("POST",)),
        ApiRoute("/v1/models", models.list, list_models),
        ApiRoute("/v1/models/{id:path}", models.get, get_model),
    ]


def _anthropic_routes(dependencies: Dependencies) -> list[ApiRoute]:
    messages = Messages(dependencies)
    create = Operation(
        summary="Continue a conversation, in Anthropic's format.",
        body=MessagesRequest,
        answer=Message,
        error=AnthropicError,
        streams=True,
        secured=True,
    )
    count = Operation(
        summary="Count the tokens of a conversation, in Anthropic's format.",
        body=CountTokensRequest,
        answer=TokensCount,
        error=AnthropicError,
        secured=True,
    )
    return [
        ApiRoute(MESSAGES, messages.create, create, methods=("POST",)),
        ApiRoute(COUNT_TOKENS, messages.count_tokens, count, methods=("POST",)),
    ]


def _tokenizer_routes(dependencies: Dependencies) -> list[ApiRoute]:
    api = Tokenize(dependencies)
    tokenize = Operation(
        summary="Encode a text or a conversation.",
        body=TokenizeRequest,
        answer=TokenizeAnswer,
        secured=True,
    )
    detokenize = Operation(
        summary="Decode token ids.", body=DetokenizeRequest, answer=DetokenizeAnswer, secured=True
    )
    return [
        ApiRoute(TOKENIZE_ROUTE, api.tokenize, tokenize, methods=("POST",)),
        ApiRoute(DETOKENIZE_ROUTE, api.detokenize, detokenize, methods=("POST",)),
    ]


def _lora_routes(dependencies: Dependencies) -> list[ApiRoute]:
    adapters = LoraAdapters(dependencies)
    load = Operation(summary="Load a LoRA adapter.", body=LoadLoraRequest, secured=True)
    unload = Operation(summary="Unload a LoRA adapter.", body=UnloadLoraRequest, secured=True)
    return [
        ApiRoute(LOAD_LORA, adapters.load, load, methods=("POST",)),
        ApiRoute(UNLOAD_LORA, adapters.unload, unload, methods=("POST",)),
    ]


def _similarity_routes(dependencies: Dependencies) -> list[ApiRoute]:
    similarity = Similarity(dependencies)
    rerank = Operation(
        summary="Sort documents by their similarity to a query.",
        body=RerankRequest,
        answer=RerankAnswer,
        secured=True,
    )
    score = Operation(
        summary="Compare pairs of texts.", body=ScoreRequest, answer=ScoreAnswer, secured=True
    )
    return [
        *(ApiRoute(path, similarity.rerank, rerank, methods=("POST",)) for path in RERANK_ROUTES),
        *(ApiRoute(path, similarity.score, score, methods=("POST",)) for path in SCORE_ROUTES),
    ]


def _responses_routes(dependencies: Dependencies) -> list[ApiRoute]:
    responses = Responses(dependencies)
    create = Operation(
        summary="Respond to a text or a conversation.",
        body=ResponsesRequest,
        answer=ResponseAnswer,
        streams=True,
        secured=True,
    )
    get = Operation(
        summary="Return a stored response.",
        query=RetrieveQuery,
        answer=ResponseAnswer,
        streams=True,
        secured=True,
    )
    given = Operation(
        summary="List the items that a response was generated from.",
        query=InputItemsQuery,
        answer=InputItemList,
        secured=True,
    )
    cancel = Operation(
        summary="End a response in the background.", answer=ResponseAnswer, secured=True
    )
    delete = Operation(summary="Delete a stored response.", answer=DeletedResponse, secured=True)
    return [
        ApiRoute(RESPONSES, responses.create, create, methods=("POST",)),
        ApiRoute(RESPONSE, responses.get, get),
        ApiRoute(RESPONSE_INPUT, responses.input_items, given),
        ApiRoute(RESPONSE, responses.delete, delete, methods=("DELETE",)),
        ApiRoute(RESPONSE_CANCEL, responses.cancel, cancel, methods=("POST",)),
    ]


def _probe_routes(dependencies: Dependencies) -> list[ApiRoute]:
    probes = Probes(dependencies)
    live = Operation(summary="Liveness probe: the process can answer HTTP.")
    ready = Operation(summary="Readiness probe: a token can be produced.")
    metrics = Operation(summary="Prometheus metrics.")
    return [
        ApiRoute("/livez", probes.live, live, methods=READ),
        ApiRoute("/readyz", probes.ready, ready, methods=READ),
        # The path that clients of vLLM and llama.cpp poll.
        ApiRoute("/health", probes.ready, ready, methods=READ),
        ApiRoute("/metrics", probes.metrics, metrics),
    ]


def _page_routes(trace_url_template: str) -> list[ApiRoute]:
    page = Page(trace_url_template)
    return [
        ApiRoute("/", page.index, methods=READ),
        *(ApiRoute(f"/{name}", page.file, methods=READ) for name in STATIC_FILES),
    ]


async def _no_route(scope: Scope, receive: Receive, send: Send) -> NoReturn:
    """404 with the same error body as every other error."""
    raise HttpError(404, f"there is no route {scope['method']} {scope['path']}", code="not_found")
