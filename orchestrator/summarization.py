"""The steps of a search: retrieve, build the prompt, generate, ground.

One generator runs them for each search, so that a token passes no further one.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from functools import partial
from types import TracebackType
from typing import NamedTuple, TypeAlias

from mesh.errors import ErrorKind, MeshError
from mesh.protocol.api_request import ApiRequest
from mesh.protocol.deltas import Delta
from mesh.protocol.finish import FinishReason, GenerationFinish
from mesh.protocol.sampling_params import SamplingParams
from mesh.protocol.search import Source
from mesh.protocol.summary import (
    RelatedQuestions,
    SearchStage,
    SearchStatus,
    SummaryFinish,
)
from mesh.protocol.usage import Usage
from orchestrator.admission.request_table import ActiveRequest, RequestAborted
from orchestrator.generation import Progress
from orchestrator.observability import spans
from orchestrator.pipeline import Pipeline
from orchestrator.routing.direct_path import Taken
from orchestrator.running_generation import DirectCall, Generation
from orchestrator.search.conversation.rewriting import Rewrite
from orchestrator.search.search import RetrievalOutcome, SummaryPrompt
from orchestrator.search.summary import (
    RETRIEVAL_FAILED,
    SearchRequest,
    SummaryAssembler,
    to_sources,
)
from orchestrator.text.preparation import PreparedPrompt

logger = logging.getLogger("orchestrator.summarization")


class Found(NamedTuple):
    """The results of a search."""

    query: str
    sources: Sequence[Source]
    model: str
    """Name of the model that writes the summary."""
    searches: Sequence[str] = ()
    """The queries that were searched, for a client that knows conversations."""


Event: TypeAlias = SearchStatus | Found | Delta | SummaryFinish | RelatedQuestions


class DirectSummary(NamedTuple):
    """Sends the deltas of a summary without waking the task of its call."""

    call: DirectCall | None
    """None: all deltas are read."""
    message: Callable[[Delta], object]
    """The call's message with a delta."""

    def begin(self, generation: Generation, summary: SummaryAssembler) -> None:
        """Sends what `summary` makes of the text of this generation."""
        if self.call is not None:
            generation.send_directly(self.call, partial(self._send, self.call, summary))

    def _send(self, call: DirectCall, summary: SummaryAssembler, progress: Progress) -> Taken:
        deltas = list(summary.read((progress,)))
        for number, delta in enumerate(deltas):
            if not call.write_now(self.message(delta)):
                summary.put_back(deltas[number:])
                return Taken.WAKE
        return Taken.WAKE if summary.reached_limit else Taken.ALL


NOT_DIRECT = DirectSummary(None, repr)


async def summarize(
    pipeline: Pipeline,
    request: SearchRequest,
    method: str,
    api_request: ApiRequest | None = None,
    direct: DirectSummary = NOT_DIRECT,
) -> AsyncGenerator[Event]:
    """The results, the summary's deltas and its finish. Raises MeshError; close it to cancel.

    A client that knows conversations also gets the stages and the related questions. `direct` sends
    deltas past the reader.
    """
    spans.describe_search()
    with pipeline.admitted(method) as active:
        active.account.api_request = api_request
        search = _Search(pipeline, request, active)
        async with aclosing(search.find()) as found:
            async for event in found:
                yield event
        if search.retrieved.failed:
            yield Delta(RETRIEVAL_FAILED, 0)
            yield SummaryFinish(FinishReason.STOP, Usage())
            return
        summary = pipeline.new_summary(request.grounded)
        try:
            prompt = await search.prompt()
            summary.set_sources(search.sources[: prompt.num_passages])
            attempts = _Attempts(prompt.prepared, active)
            for attempt in attempts:
                with attempts:
                    async with search.generate(attempt, again=attempts.is_again) as generation:
                        direct.begin(generation, summary)
                        async for chunk in generation.tokens:
                            for delta in summary.read(generation.push(chunk)):
                                yield delta
                            generation.report_first_text()
                            if summary.reached_limit:
                                break
            finish = _finish(active)
        except RequestAborted:
            finish = active.account.end_early(FinishReason.ABORT)
        for last in await pipeline.ground(summary, finish):
            yield last
        if request.num_related:
            yield await search.related()


class _Search:
    """One search: the question, what was found for it, and the generation of its answer."""

    def __init__(self, pipeline: Pipeline, request: SearchRequest, active: ActiveRequest) -> None:
        self.retrieved = RetrievalOutcome(())
        self.sources: Sequence[Source] = ()
        self._pipeline = pipeline
        self._request = request
        self._active = active
        self._question = Rewrite(request.query, [request.query])

    async def find(self) -> AsyncGenerator[SearchStatus | Found]:
        """The stages before the answer, and the results."""
        request, active = self._request, self._active
        self._model = await self._pipeline.choose_search_model(request.model, active)
        if request.is_rewritten:
            yield SearchStatus(SearchStage.REWRITING)
            self._question = await self._pipeline.rewrite(request, self._model, active)
        searches = self._question.searches
        if request.reports_status:
            yield SearchStatus(SearchStage.SEARCHING, searches)
        self.retrieved = await self._pipeline.retrieve(request, searches, active)
        self.sources = to_sources(self.retrieved.results)
        shown = searches if request.reports_status else ()
        yield Found(request.query, self.sources, self._model.name, shown)
        if request.reports_status:
            yield SearchStatus(SearchStage.READING)

    async def prompt(self) -> SummaryPrompt:
        """The prompt with the results. Raises MeshError and RequestAborted."""
        return await self._pipeline.search_prompt(
            self._request, self._question, self.retrieved, self._model, self._active
        )

    def generate(self, prompt: PreparedPrompt, *, again: bool) -> Generation:
        """A generation of the answer, to be entered at once. Raises MeshError."""
        # Greedy, so that the same question about the same documents has one answer.
        sampling = SamplingParams(temperature=0.0, max_tokens=self._request.max_tokens)
        return self._pipeline.generate(prompt, self._model, sampling, (), self._active, again=again)

    async def related(self) -> RelatedQuestions:
        """Questions near this one that the documents can answer."""
        return RelatedQuestions(
            await self._pipeline.related(self._request, self._question, self.retrieved)
        )


def _finish(active: ActiveRequest) -> GenerationFinish:
    return active.account.finish or active.account.end_early(FinishReason.LENGTH)


class _Attempts:
    """The generations of one answer: under its constraint, and without if the engine refuses it.

    The citations of an answer without constraint are verified as those of any text. Each generation
    runs in a `with` block, which suppresses the refusal.
    """

    def __init__(self, prepared: PreparedPrompt, active: ActiveRequest) -> None:
        self.is_again = False
        """Whether the current one is the second."""
        self._prepared = prepared
        self._active = active
        self._is_refused = False

    def __iter__(self) -> Iterator[PreparedPrompt]:
        yield self._prepared
        if self._is_refused:
            self.is_again = True
            yield self._prepared._replace(constraint=None)

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        self._is_refused = (
            isinstance(error, MeshError)
            and error.kind is ErrorKind.INVALID_REQUEST
            and "constraint" in (error.param or "")
            and self._active.account.ttft_seconds is None
            and not self.is_again
        )
        if self._is_refused:
            logger.warning(
                "engine refuses the constraint of an answer", extra={"error": str(error)}
            )
        return self._is_refused
