"""The RPCs of mesh.v1.OrchestratorService: each calls the steps of the pipeline in order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc.aio

from mesh.errors import ErrorKind, MeshError, invalid
from mesh.process.lifecycle import SetReady
from mesh.protocol.api_request import api_request_from_proto
from mesh.protocol.chat import ChatPrompt, chat_from_proto, tool_choice_from_proto
from mesh.protocol.deltas import Delta, set_delta
from mesh.protocol.finish import finish_to_proto, started_to_proto
from mesh.protocol.model_kind import KIND_TO_PROTO, ModelKind, input_use_from_proto
from mesh.protocol.prompt import prompt_from_proto
from mesh.protocol.sampling_params import sampling_from_proto
from mesh.protocol.search import DEFAULT_SUMMARY_TOKENS, Source
from mesh.protocol.summary import (
    Grounded,
    RelatedQuestions,
    SearchStatus,
    SummaryFinish,
    Turn,
    citation_to_proto,
    grounded_from_proto,
    status_to_proto,
    summary_finish_to_proto,
)
from mesh.rpc.kept_traces import Channels
from mesh.rpc.multiplex.service import ServedCall
from mesh.rpc.server import Servicer
from mesh.v1 import common_pb2, orchestrator_pb2, orchestrator_pb2_grpc
from orchestrator.admission.request_table import RequestAborted, RequestState, RequestTable
from orchestrator.admission.validation import (
    EMBEDS,
    SCORES,
    TOKENIZES,
    check_history,
    check_max_searches,
    check_num_questions,
    check_num_related,
    check_num_results,
    check_query,
    check_sampling,
    check_stop,
    choose_model,
)
from orchestrator.clients.tokenizer import TextOptions
from orchestrator.embedding import Input, check_inputs
from orchestrator.generation import Progress
from orchestrator.observability.spans import embeddings
from orchestrator.pipeline import GenerationRequest, Pipeline
from orchestrator.readiness import Readiness
from orchestrator.routing.direct_path import Taken
from orchestrator.routing.replicas import Replicas
from orchestrator.running_generation import DirectCall, abort
from orchestrator.scoring import Pairs, ScoreMethod, Scorer, check_pairs
from orchestrator.search.grounded_answer import CheckedProgress, GroundedAnswer
from orchestrator.search.selection import select_for_prompt
from orchestrator.search.summary import SearchRequest, to_sources
from orchestrator.summarization import DirectSummary, Event, Found, summarize
from orchestrator.text.preparation import PreparedPrompt

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

SERVICE = "mesh.v1.OrchestratorService"

MANY_TOKENS = 16_384
"""Number of tokens above which a response is built in a thread."""

_METHODS = {
    ScoreMethod.EMBEDDING_SIMILARITY: orchestrator_pb2.SCORE_METHOD_EMBEDDING_SIMILARITY,
    ScoreMethod.CROSS_ENCODER: orchestrator_pb2.SCORE_METHOD_CROSS_ENCODER,
}

_STATES = {
    RequestState.RETRIEVING: orchestrator_pb2.REQUEST_STATE_RETRIEVING,
    RequestState.ENCODING: orchestrator_pb2.REQUEST_STATE_ENCODING,
    RequestState.WAITING: orchestrator_pb2.REQUEST_STATE_WAITING,
    RequestState.STREAMING: orchestrator_pb2.REQUEST_STATE_STREAMING,
}


class OrchestratorService(orchestrator_pb2_grpc.OrchestratorServiceServicer):
    """Implements the RPCs; `watch_ready` reports when they can be served."""

    def __init__(
        self,
        pipeline: Pipeline,
        requests: RequestTable,
        replicas: Replicas,
        readiness: Readiness,
        called_channels: Channels = tuple,
        grounded: Grounded = Grounded.QUOTE,
    ) -> None:
        """`called_channels`: to all tokenizers and engines.

        `grounded`: of searches that do not name it.
        """
        self._grounded = grounded
        self.called_channels = called_channels
        self._pipeline = pipeline
        self._requests = requests
        self._replicas = replicas
        self._readiness = readiness
        self._first_seen: dict[str, int] = {}

    @property
    def servicers(self) -> Sequence[Servicer]:
        register = orchestrator_pb2_grpc.add_OrchestratorServiceServicer_to_server
        return [Servicer(SERVICE, register, self)]

    async def watch_ready(self, set_ready: SetReady) -> None:
        await self._readiness.watch(set_ready)

    async def Generate(
        self, request: orchestrator_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[orchestrator_pb2.GenerateResponse]:
        parsed = _generation_request(request)
        check_sampling(parsed.sampling)
        check_stop(parsed.stop)
        pipeline = self._pipeline
        with pipeline.admitted("Generate") as active:
            active.account.api_request = parsed.api_request
            model = await pipeline.choose_model(parsed.model, active)
            try:
                prompt = await pipeline.prompt(parsed, model, active)
                async with pipeline.generate(
                    prompt,
                    model,
                    parsed.sampling,
                    parsed.stop,
                    active,
                    fit_max_tokens=parsed.fit_max_tokens,
                ) as generation:
                    answer = _grounded_answer(parsed, prompt)
                    if answer is None and isinstance(context, ServedCall):
                        generation.send_directly(context, partial(_send, context))
                    async for chunk in generation.tokens:
                        if chunk.prompt_logprobs:
                            for progress in generation.echo(chunk, request.echo_in_parts):
                                yield _progress(progress)
                                await asyncio.sleep(0)
                        for progress in generation.push(chunk):
                            if answer is None:
                                yield _progress(progress)
                            elif (checked := await answer.check(progress)) is not None:
                                yield _checked_progress(checked)
                            generation.report_first_text()
                        if generation.stopped:
                            break
            except RequestAborted:
                yield _progress(abort(model, active))

    async def Retrieve(
        self, request: orchestrator_pb2.RetrieveRequest, context: Context
    ) -> orchestrator_pb2.RetrieveResponse:
        search = SearchRequest(
            query=check_query(request.query),
            num_results=check_num_results(request.num_results),
            max_tokens=0,
            safe_search=request.safe_search,
        )
        with self._pipeline.admitted("Retrieve") as active:
            found = await self._pipeline.retrieve(search, [search.query], active)
            return orchestrator_pb2.RetrieveResponse(
                results=_results(search.query, to_sources(found.results)),
                num_relevant=len(select_for_prompt(found.results)),
                failed=found.failed,
            )

    async def SuggestQuestions(
        self, request: orchestrator_pb2.SuggestQuestionsRequest, context: Context
    ) -> orchestrator_pb2.SuggestQuestionsResponse:
        number = check_num_questions(request.num_questions)
        with self._pipeline.admitted("SuggestQuestions") as active, _ended_by_operator():
            questions = await self._pipeline.examples(number, active)
            return orchestrator_pb2.SuggestQuestionsResponse(questions=questions)

    async def CountTokens(
        self, request: orchestrator_pb2.CountTokensRequest, context: Context
    ) -> orchestrator_pb2.CountTokensResponse:
        prompt = prompt_from_proto(request)
        with self._pipeline.admitted("CountTokens") as active, _ended_by_operator():
            model = await self._pipeline.choose_model(request.model, active, TOKENIZES)
            num_tokens = await self._pipeline.count_tokens(prompt, model, active)
            return orchestrator_pb2.CountTokensResponse(model=model.name, num_tokens=num_tokens)

    async def Tokenize(
        self, request: orchestrator_pb2.TokenizeRequest, context: Context
    ) -> orchestrator_pb2.TokenizeResponse:
        prompt = _text_or_chat(request)
        with self._pipeline.admitted("Tokenize") as active, _ended_by_operator():
            model = await self._pipeline.choose_model(request.model, active, TOKENIZES)
            special = request.add_special_tokens
            tokens = await self._pipeline.tokenize(prompt, model, special, active)

            def respond() -> orchestrator_pb2.TokenizeResponse:
                return orchestrator_pb2.TokenizeResponse(
                    model=model.name,
                    token_ids=tokens.token_ids,
                    token_strs=tokens.spelled() if request.return_token_strs else (),
                    context_length=model.context_length,
                )

            if len(tokens.token_ids) <= MANY_TOKENS:
                return respond()
            return await asyncio.to_thread(respond)

    async def Detokenize(
        self, request: orchestrator_pb2.DetokenizeRequest, context: Context
    ) -> orchestrator_pb2.DetokenizeResponse:
        with self._pipeline.admitted("Detokenize") as active, _ended_by_operator():
            model = await self._pipeline.choose_model(request.model, active, TOKENIZES)
            text = await self._pipeline.detokenize(request.token_ids, model, active)
            return orchestrator_pb2.DetokenizeResponse(model=model.name, text=text)

    def SummarizeStream(
        self, request: orchestrator_pb2.SummarizeRequest, context: Context
    ) -> AsyncIterator[orchestrator_pb2.SummarizeStreamResponse]:
        return self._summarize(request, "SummarizeStream", context)

    async def Summarize(
        self, request: orchestrator_pb2.SummarizeRequest, context: Context
    ) -> orchestrator_pb2.SummarizeResponse:
        response = orchestrator_pb2.SummarizeResponse()
        summary: list[str] = []
        async with aclosing(self._summarize(request, "Summarize", context)) as events:
            async for event in events:
                match event.WhichOneof("event"):
                    case "results":
                        response.results.CopyFrom(event.results)
                    case "delta":
                        summary.append(event.delta.text)
                    case "finish":
                        response.finish.CopyFrom(event.finish)
                    case "related":
                        response.related.CopyFrom(event.related)
        response.summary = "".join(summary)
        return response

    async def _summarize(
        self, request: orchestrator_pb2.SummarizeRequest, method: str, context: Context
    ) -> AsyncGenerator[orchestrator_pb2.SummarizeStreamResponse, None]:
        search = _search_request(request, self._grounded)
        api_request = api_request_from_proto(request)
        call = context if isinstance(context, ServedCall) else None
        direct = DirectSummary(call, _summary_event)
        events_of = summarize(self._pipeline, search, method, api_request, direct)
        async with aclosing(events_of) as events:
            async for event in events:
                yield _summary_event(event)

    async def Embed(
        self, request: orchestrator_pb2.EmbedRequest, context: Context
    ) -> AsyncIterator[orchestrator_pb2.EmbedResponse]:
        inputs = _inputs(request)
        check_inputs(inputs)
        use = input_use_from_proto(request.input_type)
        options = TextOptions(request.max_tokens, request.truncate, request.prompt_name, use)
        pipeline = self._pipeline
        with pipeline.admitted("Embed") as active:
            model = await pipeline.choose_model(request.model, active, EMBEDS)
            batches = await pipeline.encode_inputs(inputs, model, options, active)
            with embeddings(model, len(inputs), active.account.prompt_tokens) as span:
                for batch in batches:
                    vectors = await pipeline.embed(batch, model, active, span)
                    yield orchestrator_pb2.EmbedResponse(
                        model=model.name,
                        embeddings=[common_pb2.Embedding(values=vector) for vector in vectors],
                        prompt_tokens=batch.num_tokens,
                    )

    async def Score(
        self, request: orchestrator_pb2.ScoreRequest, context: Context
    ) -> AsyncIterator[orchestrator_pb2.ScoreResponse]:
        pairs = Pairs(request.first_texts, request.second_texts)
        check_pairs(pairs)
        options = TextOptions(request.max_tokens, request.truncate)
        pipeline = self._pipeline
        with pipeline.admitted("Score") as active:
            model = await pipeline.choose_model(request.model, active, SCORES)
            scorer = Scorer(pairs, model)
            batches = await pipeline.encode_pairs(scorer, options, request.is_search, active)
            with embeddings(model, len(pairs.second), active.account.prompt_tokens) as span:
                for batch in batches:
                    rows = await pipeline.embed(batch, model, active, span, scorer.field_of)
                    yield orchestrator_pb2.ScoreResponse(
                        model=model.name,
                        method=_METHODS[scorer.method],
                        # In a thread: the cosines of long vectors take milliseconds.
                        scores=await asyncio.to_thread(scorer.scores, rows),
                        prompt_tokens=batch.num_tokens,
                    )

    async def ListModels(
        self, request: orchestrator_pb2.ListModelsRequest, context: Context
    ) -> orchestrator_pb2.ListModelsResponse:
        models = {**self._replicas.sleeping, **self._replicas.models}
        now = int(time.time())
        return orchestrator_pb2.ListModelsResponse(
            models=[
                orchestrator_pb2.Model(
                    name=name,
                    context_length=0 if model is None else model.context_length,
                    created_unix_seconds=self._first_seen.setdefault(name, now),
                    kind=KIND_TO_PROTO[ModelKind.GENERATION if model is None else model.kind],
                    embedding_length=0 if model is None else model.embedding_length,
                )
                for name, model in sorted(models.items())
            ],
            problems=self._replicas.problems,
        )

    async def ListRequests(
        self, request: orchestrator_pb2.ListRequestsRequest, context: Context
    ) -> orchestrator_pb2.ListRequestsResponse:
        return orchestrator_pb2.ListRequestsResponse(
            requests=[
                orchestrator_pb2.ActiveRequest(
                    request_id=active.request_id,
                    method=active.account.method,
                    model=active.account.model,
                    state=_STATES[active.state],
                    prompt_tokens=active.account.prompt_tokens,
                    completion_tokens=active.account.completion_tokens,
                    age_seconds=active.account.age_seconds,
                )
                for active in self._requests
            ]
        )

    async def LoadAdapter(
        self, request: orchestrator_pb2.OrchestratorServiceLoadAdapterRequest, context: Context
    ) -> orchestrator_pb2.OrchestratorServiceLoadAdapterResponse:
        served = [model for model in self._replicas.models.values() if not model.base]
        model = choose_model(request.model, served)
        count = await self._replicas.adapters.load(model, request.name, request.path)
        return orchestrator_pb2.OrchestratorServiceLoadAdapterResponse(num_replicas=count)

    async def UnloadAdapter(
        self, request: orchestrator_pb2.OrchestratorServiceUnloadAdapterRequest, context: Context
    ) -> orchestrator_pb2.OrchestratorServiceUnloadAdapterResponse:
        count = await self._replicas.adapters.unload(request.name)
        return orchestrator_pb2.OrchestratorServiceUnloadAdapterResponse(num_replicas=count)

    async def CancelRequest(
        self, request: orchestrator_pb2.CancelRequestRequest, context: Context
    ) -> orchestrator_pb2.CancelRequestResponse:
        if not request.request_id:
            raise invalid("request_id", "request_id must be given")
        cancelled = self._requests.cancel(request.request_id)
        return orchestrator_pb2.CancelRequestResponse(cancelled=cancelled)


@contextmanager
def _ended_by_operator() -> Iterator[None]:
    """For requests without a finish reason: raises MeshError (CANCELLED) for RequestAborted."""
    try:
        yield
    except RequestAborted:
        raise MeshError(ErrorKind.CANCELLED, "the request was ended by an operator") from None


def _text_or_chat(request: orchestrator_pb2.TokenizeRequest) -> ChatPrompt | str:
    """The prompt. Raises MeshError (INVALID_REQUEST) if there is none."""
    match request.WhichOneof("prompt"):
        case "chat":
            return chat_from_proto(request.chat)
        case "text":
            return request.text
    raise invalid("prompt", "one of chat and text must be given")


def _generation_request(request: orchestrator_pb2.GenerateRequest) -> GenerationRequest:
    """The prompt and how to continue it, unchecked. Raises MeshError if the prompt is missing."""
    return GenerationRequest(
        prompt_from_proto(request),
        request.model,
        sampling_from_proto(request.sampling),
        list(request.stop),
        request.echo,
        tool_choice_from_proto(request.tool_choice),
        request.fit_max_tokens,
        _sources(request.grounding) if request.HasField("grounding") else None,
        api_request_from_proto(request),
    )


def _inputs(request: orchestrator_pb2.EmbedRequest) -> list[Input]:
    """The inputs to embed. Raises MeshError for an input without text and token ids."""
    inputs: list[Input] = []
    for number, each in enumerate(request.inputs):
        kind = each.WhichOneof("input")
        if kind is None:
            field = f"input[{number}]"
            raise invalid(field, f"{field} must be text or token_ids, given neither")
        inputs.append(each.text if kind == "text" else each.token_ids.ids)
    return inputs


def _send(call: DirectCall, progress: Progress) -> Taken:
    """Sends a message of a generation now, unless it is large."""
    return Taken.ALL if call.write_now(_progress(progress)) else Taken.NONE


def _progress(progress: Progress) -> orchestrator_pb2.GenerateResponse:
    """One message of a generation."""
    started, delta, finish = progress
    message = orchestrator_pb2.GenerateResponse()
    if started is not None:
        message.started.CopyFrom(started_to_proto(started))
    if delta is not None:
        set_delta(message.delta, delta)
    if finish is not None:
        message.finish.CopyFrom(finish_to_proto(finish))
    return message


def _checked_progress(checked: CheckedProgress) -> orchestrator_pb2.GenerateResponse:
    """One message of an answer with sources."""
    message = _progress(checked.progress)
    if checked.citations:
        message.finish.citation_details.extend(map(citation_to_proto, checked.citations))
    return message


def _grounded_answer(request: GenerationRequest, prompt: PreparedPrompt) -> GroundedAnswer | None:
    """Checks the citations of the answer; None if the request has no sources."""
    if request.sources is None:
        return None
    return GroundedAnswer(request.sources[: prompt.num_passages])


def _sources(grounding: orchestrator_pb2.Grounding) -> list[Source]:
    """The sources of a request. Raises MeshError (INVALID_REQUEST) if they are misnumbered."""
    sources = [
        Source(each.position, each.title, each.url, each.snippet, each.score)
        for each in grounding.sources
    ]
    for number, source in enumerate(sources, 1):
        if source.position != number:
            field = f"grounding.sources[{number - 1}].position"
            raise invalid(field, f"{field} must be {number}, given {source.position}")
    return sources


def _search_request(
    request: orchestrator_pb2.SummarizeRequest, grounded: Grounded
) -> SearchRequest:
    """The query and its parameters. Raises MeshError (INVALID_REQUEST) if one is out of bounds."""
    return SearchRequest(
        query=check_query(request.query),
        num_results=check_num_results(request.num_results),
        max_tokens=request.max_tokens or DEFAULT_SUMMARY_TOKENS,
        model=request.model,
        safe_search=request.safe_search,
        grounded=grounded_from_proto(request.grounded) or grounded,
        history=check_history([Turn(each.query, each.summary) for each in request.history]),
        max_searches=check_max_searches(request.max_searches, bool(request.history)),
        num_related=check_num_related(request.num_related),
    )


def _results(
    query: str, sources: Sequence[Source], model: str = ""
) -> orchestrator_pb2.SearchResults:
    results = [orchestrator_pb2.SearchResult(**source._asdict()) for source in sources]
    return orchestrator_pb2.SearchResults(query=query, results=results, model=model)


def _summary_event(event: Event) -> orchestrator_pb2.SummarizeStreamResponse:
    """One message of a summary."""
    response = orchestrator_pb2.SummarizeStreamResponse
    match event:
        case Delta():
            message = response()
            set_delta(message.delta, event)
            return message
        case SummaryFinish():
            return response(finish=summary_finish_to_proto(event))
        case Found():
            results = _results(event.query, event.sources, event.model)
            results.searches.extend(event.searches)
            return response(results=results)
        case SearchStatus():
            return response(status=status_to_proto(event))
        case RelatedQuestions():
            related = orchestrator_pb2.RelatedQuestions(questions=event.questions)
            return response(related=related)
