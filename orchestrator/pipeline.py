"""The way of a request: admitted, its prompt made and encoded, generated, told as text.

Each method is one visible block; leaving it in any way gives back all that the request held.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from functools import partial

from opentelemetry import trace

from mesh.context import annotate, current_request
from mesh.errors import ErrorKind, MeshError
from mesh.observability import semconv, tracing
from mesh.observability.metrics import exemplar, labelled
from mesh.protocol.chat import ToolChoice
from mesh.protocol.deltas import Delta
from mesh.protocol.finish import FinishReason, GenerationFinish, GenerationStarted
from mesh.protocol.prompt import Prompt
from mesh.protocol.sampling_params import SamplingParams
from mesh.protocol.usage import Usage
from orchestrator.admission.admission import Admission, Permit
from orchestrator.admission.request_table import ActiveRequest, RequestState, RequestTable
from orchestrator.admission.validation import (
    check_sampling,
    check_stop,
    choose_model,
)
from orchestrator.clients.tokenizer import Encoded
from orchestrator.clients.tokenizers import Tokenizers
from orchestrator.embedding import Embedded, Input, check_inputs, embed
from orchestrator.generation import ModelInfo, Progress
from orchestrator.observability import metrics, spans
from orchestrator.routing.replicas import Replicas
from orchestrator.search.search import Retrieved, Search
from orchestrator.search.summary import (
    NOTHING_SEARCHED,
    Found,
    Question,
    Summary,
    SummaryFinish,
    as_sources,
)
from orchestrator.text.completion import Completion, begin
from orchestrator.text.preparation import Prepared, as_prepared, prepare

logger = logging.getLogger("orchestrator.pipeline")

ANY_TOOL = ToolChoice()


class Pipeline:
    """Works on requests, many at a time, on one event loop."""

    def __init__(
        self,
        *,
        admission: Admission,
        requests: RequestTable,
        tokenizers: Tokenizers,
        replicas: Replicas,
        search: Search,
        request_timeout_seconds: float,
        max_summary_characters: int,
    ) -> None:
        """`request_timeout_seconds` is for requests that come without a deadline."""
        self._admission = admission
        self._requests = requests
        self._tokenizers = tokenizers
        self._replicas = replicas
        self._search = search
        self._request_timeout_seconds = request_timeout_seconds
        self._max_summary_characters = max_summary_characters
        metrics.NUM_REQUESTS_RUNNING.set_function(lambda: len(requests))

    async def generate(
        self,
        prompt: Prompt,
        *,
        model: str,
        sampling: SamplingParams,
        stop: Sequence[str],
        echo: bool = False,
        tool_choice: ToolChoice = ANY_TOOL,
    ) -> AsyncGenerator[Progress, None]:
        """Stream the start, deltas and one finish. A refusal raises MeshError before the start."""
        check_sampling(sampling)
        check_stop(stop)
        with self._admitted("Generate") as active:
            served = self._choose(model, active)
            wanted = (prompt, sampling.constraint, echo, tool_choice)
            encode = partial(prepare, self._tokenizers.of(served.name), *wanted)
            stream = self._complete(encode, served, sampling, stop, active)
            async with aclosing(stream):
                async for progress in stream:
                    yield progress

    async def embed(self, inputs: Sequence[Input], *, model: str) -> AsyncGenerator[Embedded, None]:
        """The inputs' vectors, batch by batch. Raises MeshError."""
        check_inputs(inputs)
        with self._admitted("Embed") as active:
            served = self._choose(model, active)
            batches = embed(
                inputs,
                model=served,
                tokenizer=self._tokenizers.of(served.name),
                replicas=self._replicas,
                active=active,
            )
            async with aclosing(batches):
                async for batch in batches:
                    yield batch
            annotate(model=served.name, prompt_tokens=active.prompt_tokens)

    async def summarize(
        self, question: Question, *, method: str
    ) -> AsyncGenerator[Found | Delta | SummaryFinish, None]:
        """`Found`, deltas, one `SummaryFinish`. The question must have been checked."""
        with self._admitted(method) as active:
            served = self._choose(question.model, active)
            retrieved = await self._find(question, active)
            sources = as_sources(retrieved.results)
            yield Found(question.query, sources)
            if retrieved.failed:
                yield Delta(NOTHING_SEARCHED, 0)
                yield SummaryFinish(FinishReason.STOP, Usage())
                return
            summary = Summary(self._max_summary_characters)

            async def encode() -> Encoded:
                prompt = await self._search.encode(
                    question.query, retrieved.results, question.max_tokens, served
                )
                summary.give(sources[: prompt.num_passages])
                return prompt.encoded

            # Greedy: the same question on the same documents has the same answer.
            sampling = SamplingParams(temperature=0.0, max_tokens=question.max_tokens)
            stream = self._complete(encode, served, sampling, (), active)
            async with aclosing(stream):
                async for event in self._summary(stream, summary, active):
                    yield event

    async def _summary(
        self,
        stream: AsyncGenerator[Progress, None],
        summary: Summary,
        active: ActiveRequest,
    ) -> AsyncGenerator[Delta | SummaryFinish, None]:
        """The checked text of `stream`, which is left when it is as long as it may be."""
        finish = None
        async for progress in stream:
            if progress.delta is not None:
                for delta in summary.push(progress.delta):
                    yield delta
            finish = progress.finish
            if summary.full:
                break
        if finish is None:
            usage = Usage(active.prompt_tokens, active.completion_tokens)
            finish = GenerationFinish(FinishReason.LENGTH, usage)
        with tracing.stage(semconv.GROUNDING):
            rest = list(summary.finish(finish))
        for last in rest:
            if isinstance(last, SummaryFinish):
                annotate(num_citations=len(last.citations))
            yield last

    async def _find(self, question: Question, active: ActiveRequest) -> Retrieved:
        active.state = RequestState.RETRIEVING
        try:
            async with active.cancellable():
                return await self._search.find(
                    question.query, question.num_results, question.safe_search
                )
        except MeshError:
            if not active.cancelled:
                raise
            return Retrieved(())  # the finish that follows says that the request was ended

    async def _complete(
        self,
        encode: Callable[[], Awaitable[Encoded | Prepared]],
        model: ModelInfo,
        sampling: SamplingParams,
        stop: Sequence[str],
        active: ActiveRequest,
    ) -> AsyncGenerator[Progress, None]:
        started = False
        completion: Completion | None = None
        try:
            active.state = RequestState.ENCODING
            with tracing.stage(semconv.ENCODE) as span:
                async with active.cancellable():
                    prepared = as_prepared(await encode())
                span.set_attribute(semconv.NUM_TOKENS, len(prepared.encoded.token_ids))
            completion = begin(prepared, model, sampling, stop, active)
            stream = completion.stream(self._replicas)
            with spans.generation(prepared.encoded, model, sampling, stop) as active.generation:
                async with aclosing(stream):
                    async for progress in stream:
                        if progress.delta is not None:
                            _count(active, progress.delta)
                            active.generation.delta(progress.delta)
                        if progress.finish is not None:
                            annotate(finish_reason=progress.finish.reason.value)
                            active.generation.finish(progress.finish)
                        active.generation.usage = completion.usage
                        started = True
                        yield progress
                        _tell_first_text(active)  # it need not wait for that
        except MeshError as error:
            if error.kind is not ErrorKind.CANCELLED or not active.cancelled:
                raise
            annotate(finish_reason=FinishReason.ABORT.value)
            yield Progress(
                started=None if started else GenerationStarted(model.name, active.prompt_tokens),
                finish=GenerationFinish(
                    FinishReason.ABORT, completion.usage if completion else Usage()
                ),
            )
        finally:
            _tell_first_text(active)
            annotate(
                model=model.name,
                prompt_tokens=active.prompt_tokens,
                completion_tokens=active.completion_tokens,
            )

    def _choose(self, model: str, active: ActiveRequest) -> ModelInfo:
        served = list(self._replicas.models.values())
        if not served:
            raise MeshError(ErrorKind.UNAVAILABLE, "no engine is ready", retry_after=1.0)
        chosen = choose_model(model, served)
        active.model = chosen.name
        return chosen

    @contextmanager
    def _admitted(self, method: str) -> Iterator[ActiveRequest]:
        """A permit, a row in the table, and the request's metrics at its end."""
        request = current_request()
        started = time.monotonic()
        if request is not None and request.deadline is None:
            request.deadline = started + self._request_timeout_seconds
        outcome, active = metrics.REFUSED_AT_ADMISSION, None
        try:
            with (
                self._admit(request.key_name if request else "") as permit,
                self._requests.track(request.request_id if request else "", method) as active,
            ):
                active.permit = permit
                outcome = "cancelled"
                try:
                    yield active
                    outcome = "ok"
                except MeshError as error:
                    outcome = error.kind.value
                    raise
                except Exception:
                    outcome = ErrorKind.INTERNAL.value
                    raise
        finally:
            metrics.observe(method, outcome, time.monotonic() - started, active)

    def _admit(self, key: str) -> Permit:
        limit = {semconv.ADMISSION_LIMIT: self._admission.limit}
        with tracing.stage(semconv.ADMISSION, limit) as span:
            span.set_attribute(semconv.NUM_ADMITTED, self._admission.num_admitted)
            return self._admission.permit(key)


def _count(active: ActiveRequest, delta: Delta) -> None:
    first = not active.first_token_seen
    if active.permit is not None:
        active.permit.progress(delta.num_tokens + first * active.prompt_tokens)
    if first:
        active.first_token_seen = True
        active.untold_ttft = active.age_seconds


def _tell_first_text(active: ActiveRequest) -> None:
    ttft, active.untold_ttft = active.untold_ttft, None
    if ttft is not None:
        labelled(metrics.TIME_TO_FIRST_TOKEN, active.method).observe(ttft, exemplar())
        annotate(ttft_seconds=ttft)
        was = time.time_ns() - int(1e9 * (active.age_seconds - ttft))
        trace.get_current_span().add_event(semconv.FIRST_TOKEN, timestamp=was)
