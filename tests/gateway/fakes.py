"""A fake orchestrator on real gRPC, which follows a script."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field

import grpc

from gateway.upstream.readiness import PROBLEMS_TIMEOUT_SECONDS
from mesh.context import RequestContext, current_request
from mesh.errors import ErrorKind, MeshError
from mesh.observability.telemetry import trace_id
from mesh.v1 import common_pb2, orchestrator_pb2, orchestrator_pb2_grpc

STOP = common_pb2.FINISH_REASON_STOP
LENGTH = common_pb2.FINISH_REASON_LENGTH
ABORT = common_pb2.FINISH_REASON_ABORT


@dataclass(kw_only=True)
class Script:
    """What the fake orchestrator answers to the next calls."""

    deltas: Sequence[str | orchestrator_pb2.Delta] = ("Hello", " wor", "ld")
    seconds_before_delta: float = 0.0
    seconds_before_first_event: float = 0.0
    gate: asyncio.Semaphore | None = None
    """If set, each delta waits for one release of this semaphore."""
    refusal: MeshError | None = None
    """Raised instead of the first event."""
    failure: Exception | None = None
    """Raised after the deltas, instead of the finish."""
    at_once: bool = False
    """Send a generation as one message, with the text of all deltas in one delta."""
    endless: bool = False
    """Repeat the last delta forever."""
    without_finish: bool = False
    """End the stream without a finish event."""
    reason: int = STOP
    stop_string: str = ""
    """The stop string that the finish reports."""
    num_resumptions: int = 0
    logprobs: bool = False
    tool_prompt: common_pb2.ToolPrompt.ValueType = common_pb2.TOOL_PROMPT_UNSPECIFIED
    citations: Sequence[int] = (1,)
    citation_details: Sequence[tuple[int, tuple[int, int], tuple[int, int] | None]] = (
        (1, (0, 5), (2, 9)),
        (0, (6, 11), None),
    )
    without_score: bool = False
    """Refuse `Score` as an earlier version does, which does not have it."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Scores of second texts; of another text minus the number of its pair."""
    score_method: orchestrator_pb2.ScoreMethod.ValueType = (
        orchestrator_pb2.SCORE_METHOD_EMBEDDING_SIMILARITY
    )
    results: Sequence[tuple[str, str, str]] = (
        ("Weir", "https://example.org/weir", "A low dam that regulates a river."),
        ("Dam", "https://example.org/dam", "It holds a river back."),
    )


@dataclass
class FakeOrchestrator(orchestrator_pb2_grpc.OrchestratorServiceServicer):
    """Follows `script`; records its requests and counts running, cancelled and sent ones."""

    script: Script = field(default_factory=Script)
    requests: list[object] = field(default_factory=list)
    contexts: list[RequestContext] = field(default_factory=list)
    trace_ids: list[str] = field(default_factory=list)
    num_running: int = 0
    num_cancelled: int = 0
    num_sent: int = 0
    scripts: list[Script] = field(default_factory=list)
    """Scripts of the next generations, before `script` is used again."""
    num_listed: int = 0
    adapter_calls: list[tuple[str, str, str]] = field(default_factory=list)
    """Calls of ListModels."""
    problems: list[str] = field(default_factory=list)
    """Reported by ListModels."""
    refuse_after: int | None = None
    """Number of calls to accept; later calls fail with OVERLOADED. None: accept all."""

    async def Generate(self, request, context) -> AsyncIterator[object]:  # type: ignore[no-untyped-def]
        """Stream a start, the deltas of the script and a finish."""
        script = self.scripts.pop(0) if self.scripts else self.script
        started = orchestrator_pb2.GenerateStarted(
            model="fake", prompt_tokens=7, tool_prompt=script.tool_prompt
        )
        finish = orchestrator_pb2.GenerateFinish(
            reason=script.reason,
            usage=usage(script),
            stop_string=script.stop_string,
            num_resumptions=script.num_resumptions,
        )
        if request.HasField("grounding"):
            finish.citation_details.extend(map(citation, script.citation_details))
        if script.at_once:
            self._record(request)
            text = delta("".join(map(str, script.deltas)), script.logprobs)
            yield orchestrator_pb2.GenerateResponse(started=started, delta=text, finish=finish)
            return
        first = orchestrator_pb2.GenerateResponse(started=started)
        async for event in self._stream(request, script, first, orchestrator_pb2.GenerateResponse):
            yield event
            if event is first and request.echo:
                yield orchestrator_pb2.GenerateResponse(delta=echo(request))
        if not script.without_finish:
            yield orchestrator_pb2.GenerateResponse(finish=finish)

    async def SuggestQuestions(self, request, context):  # type: ignore[no-untyped-def]
        """Suggest two questions."""
        if self.script.refusal is not None:
            raise self.script.refusal
        return orchestrator_pb2.SuggestQuestionsResponse(questions=["What is a weir?", "Dams"])

    async def CountTokens(self, request, context):  # type: ignore[no-untyped-def]
        """Count seven tokens."""
        self._record(request)
        if self.script.refusal is not None:
            raise self.script.refusal
        return orchestrator_pb2.CountTokensResponse(model="fake", num_tokens=7)

    async def Tokenize(self, request, context):  # type: ignore[no-untyped-def]
        """One token for each character."""
        self._record(request)
        if self.script.refusal is not None:
            raise self.script.refusal
        text = request.text or "".join(each.content for each in request.chat.messages)
        return orchestrator_pb2.TokenizeResponse(
            model="fake",
            token_ids=map(ord, text),
            token_strs=text if request.return_token_strs else (),
            context_length=2048,
        )

    async def Detokenize(self, request, context):  # type: ignore[no-untyped-def]
        """One character for each token."""
        self._record(request)
        if self.script.refusal is not None:
            raise self.script.refusal
        return orchestrator_pb2.DetokenizeResponse(
            model="fake", text="".join(map(chr, request.token_ids))
        )

    async def SummarizeStream(self, request, context) -> AsyncIterator[object]:  # type: ignore[no-untyped-def]
        """Stream the search results, the deltas of the script and a finish."""
        script = self.script
        response = orchestrator_pb2.SummarizeStreamResponse
        first = response(results=results(request.query, script))
        follows = bool(request.history) or request.num_related > 0
        if follows:
            first.results.searches.append(request.query)
            for stage in range(1 if request.history else 2, 3):
                yield response(status=orchestrator_pb2.SearchStatus(stage=stage))
        async for event in self._stream(request, script, first, response):
            yield event
            if follows and event is first:
                yield response(status=orchestrator_pb2.SearchStatus(stage=3))
        if not script.without_finish:
            finish = orchestrator_pb2.SummarizeFinish(
                reason=script.reason,
                usage=usage(script),
                citations=script.citations,
                citation_details=map(citation, script.citation_details),
                num_resumptions=script.num_resumptions,
            )
            yield response(finish=finish)
            if request.num_related:
                questions = ["What is a dam?"][: request.num_related]
                yield response(related=orchestrator_pb2.RelatedQuestions(questions=questions))

    async def Retrieve(self, request, context):  # type: ignore[no-untyped-def]
        """Return the results of the script, all of them relevant."""
        self._record(request)
        if self.script.refusal is not None:
            raise self.script.refusal
        return orchestrator_pb2.RetrieveResponse(
            results=results(request.query, self.script),
            num_relevant=len(self.script.results),
        )

    async def Embed(self, request, context) -> AsyncIterator[object]:  # type: ignore[no-untyped-def]
        """Send two vectors per message; a vector is (length of the input, index + 0.1)."""
        self._record(request)
        if self.script.refusal is not None:
            raise self.script.refusal
        sizes = [len(each.text) or len(each.token_ids.ids) for each in request.inputs]
        for begin in range(0, len(sizes), 2):
            batch = range(begin, min(begin + 2, len(sizes)))
            yield orchestrator_pb2.EmbedResponse(
                model="fake",
                embeddings=[common_pb2.Embedding(values=[sizes[n], n + 0.1]) for n in batch],
                prompt_tokens=sum(sizes[n] for n in batch),
            )

    async def Score(self, request, context) -> AsyncIterator[object]:  # type: ignore[no-untyped-def]
        """Send two scores per message; a score is -1 by the number of the pair."""
        if self.script.without_score:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
        self._record(request)
        if self.script.refusal is not None:
            raise self.script.refusal
        texts = request.second_texts
        for begin in range(0, len(texts), 2):
            batch = range(begin, min(begin + 2, len(texts)))
            yield orchestrator_pb2.ScoreResponse(
                model="fake",
                method=self.script.score_method,
                scores=[self.script.scores.get(texts[n], -n) for n in batch],
                prompt_tokens=sum(len(texts[n]) for n in batch),
            )

    async def LoadAdapter(self, request, context):  # type: ignore[no-untyped-def]
        self.adapter_calls.append(("load", request.name, request.path))
        return orchestrator_pb2.OrchestratorServiceLoadAdapterResponse(num_replicas=1)

    async def UnloadAdapter(self, request, context):  # type: ignore[no-untyped-def]
        self.adapter_calls.append(("unload", request.name, ""))
        return orchestrator_pb2.OrchestratorServiceUnloadAdapterResponse(num_replicas=1)

    async def ListModels(self, request, context):  # type: ignore[no-untyped-def]
        """List two models; the gateway's own calls, of short deadlines, are not recorded."""
        self.num_listed += 1
        if context.time_remaining() > 2 * PROBLEMS_TIMEOUT_SECONDS:
            self._record(request)
        models = [
            orchestrator_pb2.Model(name=name, context_length=2048, created_unix_seconds=1700000000)
            for name in ("fake", "org/other")
        ]
        return orchestrator_pb2.ListModelsResponse(models=models, problems=self.problems)

    async def _stream(self, request, script, first, response) -> AsyncIterator[object]:  # type: ignore[no-untyped-def]
        self._record(request)
        self.num_running += 1
        try:
            await asyncio.sleep(script.seconds_before_first_event)
            if script.refusal is not None:
                raise script.refusal
            if self.refuse_after is not None and len(self.requests) > self.refuse_after:
                raise MeshError(ErrorKind.OVERLOADED, "no place is left")
            yield first
            number = 0
            while number < len(script.deltas) or script.endless:
                await asyncio.sleep(script.seconds_before_delta)
                if script.gate is not None:
                    await script.gate.acquire()
                text = script.deltas[min(number, len(script.deltas) - 1)]
                yield response(delta=delta(text, script.logprobs))
                number += 1
                self.num_sent += 1
            if script.failure is not None:
                raise script.failure
        except (asyncio.CancelledError, GeneratorExit):
            self.num_cancelled += 1
            raise
        finally:
            self.num_running -= 1

    def _record(self, request: object) -> None:
        context = current_request()
        assert context is not None
        self.requests.append(request)
        self.contexts.append(context)
        self.trace_ids.append(trace_id())


def results(query: str, script: Script) -> orchestrator_pb2.SearchResults:
    """The search results of a script."""
    return orchestrator_pb2.SearchResults(
        query=query,
        model="fake",
        results=[
            orchestrator_pb2.SearchResult(
                position=number, title=title, url=url, snippet=snippet, score=1.5
            )
            for number, (title, url, snippet) in enumerate(script.results, 1)
        ],
    )


def usage(script: Script) -> common_pb2.Usage:
    """Usage of a script: seven prompt tokens, and one completion token per delta."""
    return common_pb2.Usage(prompt_tokens=7, completion_tokens=len(script.deltas), cached_tokens=4)


def citation(
    detail: tuple[int, tuple[int, int], tuple[int, int] | None],
) -> orchestrator_pb2.CitationDetail:
    """Build a CitationDetail from (position, sentence span, source span or None)."""
    position, (begin, end), span = detail
    made = orchestrator_pb2.CitationDetail(
        position=position, sentence=orchestrator_pb2.TextSpan(begin=begin, end=end)
    )
    if span is not None:
        made.span.begin, made.span.end = span
    return made


def echo(request: orchestrator_pb2.GenerateRequest) -> orchestrator_pb2.Delta:
    """Echo the prompt, one token per character; the first has no log probability."""
    made = orchestrator_pb2.Delta(text=request.text)
    if request.sampling.HasField("num_prompt_logprobs"):
        for number, character in enumerate(request.text):
            made.logprobs.add(
                token=character,
                token_bytes=character.encode(),
                logprob=-float(number) if number else None,
            )
    return made


def delta(text: str | orchestrator_pb2.Delta, with_logprobs: bool) -> orchestrator_pb2.Delta:
    """Build a delta of one token from text; return a Delta as it is."""
    if not isinstance(text, str):
        return text
    made = orchestrator_pb2.Delta(text=text, num_tokens=1)
    if with_logprobs:
        top = [
            orchestrator_pb2.DeltaLogprob(token="a", token_bytes=b"a", logprob=-0.5),
            orchestrator_pb2.DeltaLogprob(token="b", token_bytes=b"b", logprob=float("-inf")),
        ]
        made.logprobs.append(
            orchestrator_pb2.DeltaLogprob(
                token=text, token_bytes=text.encode(), logprob=-0.25, top=top
            )
        )
    return made
