"""mesh.v1.OrchestratorService on the pipeline: protobuf in and out."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import grpc.aio

from mesh.errors import invalid
from mesh.process.lifecycle import SetReady
from mesh.protocol.chat import tool_choice_from_proto
from mesh.protocol.deltas import Delta, delta_to_proto
from mesh.protocol.finish import REASON_TO_PROTO, finish_to_proto, started_to_proto
from mesh.protocol.prompt import prompt_from_proto
from mesh.protocol.sampling_params import sampling_from_proto
from mesh.protocol.search import DEFAULT_SUMMARY_TOKENS
from mesh.protocol.usage import usage_to_proto
from mesh.rpc.server import Servicer
from mesh.v1 import common_pb2, orchestrator_pb2, orchestrator_pb2_grpc
from orchestrator.admission.request_table import RequestState, RequestTable
from orchestrator.admission.validation import check_num_results, check_query
from orchestrator.embedding import Input
from orchestrator.generation import Progress
from orchestrator.pipeline import Pipeline
from orchestrator.readiness import Readiness
from orchestrator.routing.replicas import Replicas
from orchestrator.search.grounding.grounding import Citation
from orchestrator.search.summary import SearchRequest, SearchResults, SummaryFinish

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

SERVICE = "mesh.v1.OrchestratorService"

_STATES = {
    RequestState.RETRIEVING: orchestrator_pb2.REQUEST_STATE_RETRIEVING,
    RequestState.ENCODING: orchestrator_pb2.REQUEST_STATE_ENCODING,
    RequestState.WAITING: orchestrator_pb2.REQUEST_STATE_WAITING,
    RequestState.STREAMING: orchestrator_pb2.REQUEST_STATE_STREAMING,
}


class OrchestratorService(orchestrator_pb2_grpc.OrchestratorServiceServicer):
    """The RPCs, and when they can be served."""

    def __init__(
        self,
        pipeline: Pipeline,
        requests: RequestTable,
        replicas: Replicas,
        readiness: Readiness,
    ) -> None:
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
        stream = self._pipeline.generate(
            prompt_from_proto(request),
            model=request.model,
            sampling=sampling_from_proto(request.sampling),
            stop=list(request.stop),
            echo=request.echo,
            tool_choice=tool_choice_from_proto(request.tool_choice),
        )
        async with aclosing(stream):
            async for progress in stream:
                yield _progress(progress)

    async def SummarizeStream(
        self, request: orchestrator_pb2.SummarizeRequest, context: Context
    ) -> AsyncIterator[orchestrator_pb2.SummarizeStreamResponse]:
        events = self._summarize(request, "SummarizeStream")
        async with aclosing(events):
            async for event in events:
                if isinstance(event, Delta):
                    yield orchestrator_pb2.SummarizeStreamResponse(delta=delta_to_proto(event))
                elif isinstance(event, SearchResults):
                    yield orchestrator_pb2.SummarizeStreamResponse(results=_results(event))
                else:
                    yield orchestrator_pb2.SummarizeStreamResponse(finish=_summary_finish(event))

    async def Summarize(
        self, request: orchestrator_pb2.SummarizeRequest, context: Context
    ) -> orchestrator_pb2.SummarizeResponse:
        response = orchestrator_pb2.SummarizeResponse()
        summary: list[str] = []
        events = self._summarize(request, "Summarize")
        async with aclosing(events):
            async for event in events:
                if isinstance(event, Delta):
                    summary.append(event.text)
                elif isinstance(event, SearchResults):
                    response.results.CopyFrom(_results(event))
                else:
                    response.finish.CopyFrom(_summary_finish(event))
        response.summary = "".join(summary)
        return response

    async def Embed(
        self, request: orchestrator_pb2.EmbedRequest, context: Context
    ) -> AsyncIterator[orchestrator_pb2.EmbedResponse]:
        inputs = _inputs(request)
        batches = self._pipeline.embed(inputs, model=request.model)
        async with aclosing(batches):
            async for batch in batches:
                yield orchestrator_pb2.EmbedResponse(
                    model=batch.model,
                    embeddings=[common_pb2.Embedding(values=vector) for vector in batch.vectors],
                    prompt_tokens=batch.prompt_tokens,
                )

    async def ListModels(
        self, request: orchestrator_pb2.ListModelsRequest, context: Context
    ) -> orchestrator_pb2.ListModelsResponse:
        models = self._replicas.models
        now = int(time.time())
        return orchestrator_pb2.ListModelsResponse(
            models=[
                orchestrator_pb2.Model(
                    name=name,
                    context_length=models[name].context_length,
                    created_unix_seconds=self._first_seen.setdefault(name, now),
                )
                for name in sorted(models)
            ]
        )

    async def ListRequests(
        self, request: orchestrator_pb2.ListRequestsRequest, context: Context
    ) -> orchestrator_pb2.ListRequestsResponse:
        return orchestrator_pb2.ListRequestsResponse(
            requests=[
                orchestrator_pb2.ActiveRequest(
                    request_id=active.request_id,
                    method=active.method,
                    model=active.model,
                    state=_STATES[active.state],
                    prompt_tokens=active.prompt_tokens,
                    completion_tokens=active.completion_tokens,
                    age_seconds=active.age_seconds,
                )
                for active in self._requests
            ]
        )

    async def CancelRequest(
        self, request: orchestrator_pb2.CancelRequestRequest, context: Context
    ) -> orchestrator_pb2.CancelRequestResponse:
        if not request.request_id:
            raise invalid("request_id", "request_id must be given")
        cancelled = self._requests.cancel(request.request_id)
        return orchestrator_pb2.CancelRequestResponse(cancelled=cancelled)

    def _summarize(
        self, request: orchestrator_pb2.SummarizeRequest, method: str
    ) -> AsyncGenerator[SearchResults | Delta | SummaryFinish, None]:
        question = SearchRequest(
            query=check_query(request.query),
            num_results=check_num_results(request.num_results),
            max_tokens=request.max_tokens or DEFAULT_SUMMARY_TOKENS,
            model=request.model,
            safe_search=request.safe_search,
        )
        return self._pipeline.summarize(question, method=method)


def _inputs(request: orchestrator_pb2.EmbedRequest) -> list[Input]:
    """Convert the inputs of a request. Raises MeshError (INVALID_REQUEST) for an empty one."""
    inputs: list[Input] = []
    for number, each in enumerate(request.inputs):
        kind = each.WhichOneof("input")
        if kind is None:
            raise invalid("input", f"input[{number}] must be text or token_ids, given neither")
        inputs.append(each.text if kind == "text" else list(each.token_ids.ids))
    return inputs


def _progress(progress: Progress) -> orchestrator_pb2.GenerateResponse:
    """Convert to protobuf."""
    started, delta, finish = progress
    return orchestrator_pb2.GenerateResponse(
        started=None if started is None else started_to_proto(started),
        delta=None if delta is None else delta_to_proto(delta),
        finish=None if finish is None else finish_to_proto(finish),
    )


def _results(found: SearchResults) -> orchestrator_pb2.SearchResults:
    return orchestrator_pb2.SearchResults(
        query=found.query,
        results=[orchestrator_pb2.SearchResult(**source._asdict()) for source in found.sources],
    )


def _summary_finish(finish: SummaryFinish) -> orchestrator_pb2.SummarizeFinish:
    return orchestrator_pb2.SummarizeFinish(
        reason=REASON_TO_PROTO[finish.reason],
        usage=usage_to_proto(finish.usage),
        citations=finish.citations,
        citation_details=map(_citation_detail, finish.details),
    )


def _citation_detail(citation: Citation) -> orchestrator_pb2.CitationDetail:
    return orchestrator_pb2.CitationDetail(
        position=citation.position,
        sentence=orchestrator_pb2.TextSpan(**citation.sentence._asdict()),
        span=citation.span and orchestrator_pb2.TextSpan(**citation.span._asdict()),
    )
