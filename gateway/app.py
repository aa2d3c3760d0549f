"""The ASGI application: the table of routes, and the middleware around them."""

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
from gateway.api.models import Models
from gateway.api.page import STATIC_FILES, Page
from gateway.api.probes import Probes
from gateway.api.search import ROUTE as SEARCH
from gateway.api.search import STREAM_ROUTE as SEARCH_STREAM
from gateway.api.search import SearchEndpoint
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
from gateway.schemas.chat import ChatCompletion, ChatCompletionRequest
from gateway.schemas.completions import Completion, CompletionRequest
from gateway.schemas.embeddings import EmbeddingList, EmbeddingRequest
from gateway.schemas.models import Model, ModelList
from gateway.schemas.search import SearchAnswer, SearchRequest, ValidationAnswer

READ = ("GET", "HEAD")


def build_app(dependencies: Dependencies) -> Router:
    """The application of one gateway."""
    settings = dependencies.settings
    routes = [*_api_routes(dependencies), *_page_routes(settings.trace_url_template)]
    # Made when it is first asked for: it takes longer than all the rest of the application.
    document = cache(lambda: openapi(routes, secured=dependencies.keys.required))

    async def describe(request: Request) -> Response:
        return json_response(document())

    routes.append(ApiRoute("/openapi.json", describe))
    open_paths = [r.path for r in routes if r.operation is None or not r.operation.secured]
    # Not an application of Starlette's, which brings two more layers for exceptions, and each event
    # of a stream goes through all: `ObserveMiddleware` answers every one of them.
    return Router(
        routes,
        # A path is right or wrong: a redirect would turn a POST into a GET.
        redirect_slashes=False,
        default=_no_route,
        middleware=[
            Middleware(
                ObserveMiddleware,
                timeout_seconds=settings.request_timeout_seconds,
                first_token_seconds=settings.first_token_timeout_seconds or None,
                idle_seconds=settings.idle_timeout_seconds or None,
            ),
            Middleware(
                OriginMiddleware, hosts=settings.allowed_host_list, origins=settings.origin_list
            ),
            Middleware(DrainMiddleware, drain=dependencies.drain),
            Middleware(AuthMiddleware, keys=dependencies.keys, open_paths=open_paths),
        ],
    )


def _api_routes(dependencies: Dependencies) -> list[ApiRoute]:
    chat, completions = ChatCompletions(dependencies), Completions(dependencies)
    models, search, operations = (
        Models(dependencies),
        SearchEndpoint(dependencies),
        Probes(dependencies),
    )
    return [
        ApiRoute(
            SEARCH,
            search.get,
            Operation(
                summary="Find documents and summarise them.",
                query=SearchRequest,
                answer=SearchAnswer,
                streams=True,
                secured=True,
            ),
        ),
        ApiRoute(
            SEARCH,
            search.post,
            Operation(
                summary="Find documents and summarise them.",
                body=SearchRequest,
                answer=SearchAnswer,
                streams=True,
                secured=True,
            ),
            methods=("POST",),
        ),
        ApiRoute(
            SEARCH_STREAM,
            search.stop,
            Operation(summary="Stop a resumable search.", status=204, secured=True),
            methods=("DELETE",),
        ),
        ApiRoute(
            VALIDATE,
            ValidateEndpoint(dependencies).check,
            Operation(
                summary="Check a search without searching.",
                body=SearchRequest,
                answer=ValidationAnswer,
                secured=True,
            ),
            methods=("POST",),
        ),
        ApiRoute(
            CHAT,
            chat.create,
            Operation(
                summary="Continue a conversation.",
                body=ChatCompletionRequest,
                answer=ChatCompletion,
                streams=True,
                secured=True,
            ),
            methods=("POST",),
        ),
        ApiRoute(
            COMPLETIONS,
            completions.create,
            Operation(
                summary="Continue a text.",
                body=CompletionRequest,
                answer=Completion,
                streams=True,
                secured=True,
            ),
            methods=("POST",),
        ),
        ApiRoute(
            EMBEDDINGS,
            Embeddings(dependencies).create,
            Operation(
                summary="Turn texts into vectors.",
                body=EmbeddingRequest,
                answer=EmbeddingList,
                secured=True,
            ),
            methods=("POST",),
        ),
        ApiRoute(
            "/v1/models",
            models.list,
            Operation(summary="List the models.", answer=ModelList, secured=True),
        ),
        ApiRoute(
            "/v1/models/{id:path}",
            models.get,
            Operation(summary="Describe a model.", answer=Model, secured=True),
        ),
        ApiRoute("/livez", operations.live, Operation(summary="Is alive."), methods=READ),
        ApiRoute(
            "/readyz",
            operations.ready,
            Operation(summary="A token can be produced."),
            methods=READ,
        ),
        ApiRoute("/metrics", operations.metrics, Operation(summary="Prometheus metrics.")),
    ]


def _page_routes(trace_url_template: str) -> list[ApiRoute]:
    page = Page(trace_url_template)
    return [
        ApiRoute("/", page.index, methods=READ),
        *(ApiRoute(f"/{name}", page.file, methods=READ) for name in STATIC_FILES),
    ]


async def _no_route(scope: Scope, receive: Receive, send: Send) -> NoReturn:
    """A path that is not there, in the words of every other error."""
    raise HttpError(404, f"there is no route {scope['method']} {scope['path']}", code="not_found")
