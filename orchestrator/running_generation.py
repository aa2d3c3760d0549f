"""One running generation: chunks of tokens to the messages of its call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Protocol

from mesh.errors import MeshError
from mesh.protocol.deltas import Delta
from mesh.protocol.finish import FinishReason, GenerationFinish, GenerationStarted
from mesh.protocol.tokens import TokenChunk
from orchestrator.admission.request_table import ActiveRequest, RequestState
from orchestrator.admission.timeouts import TokenSource
from orchestrator.generation import ModelInfo, Progress
from orchestrator.routing.direct_path import DirectPath, Taken
from orchestrator.text.assembler import TextAssembler


class DirectCall(Protocol):
    """A call's context that can send a message without waiting."""

    @property
    def takes_now(self) -> bool:
        """Whether `write_now` may be called."""

    def when_sent(self, callback: Callable[[], None]) -> bool:
        """Whether it may soon be; then `callback` is called."""

    def write_now(self, response: object) -> bool:
        """Sends a response; False if it is too large for that."""


class Generation:
    """One running generation: read `tokens`, pass each chunk to `push`, send what it returns.

    Leaving its block cancels the engine's call. A class, because a context manager made of a
    generator costs every request more.
    """

    def __init__(
        self,
        tokens: TokenSource,
        assembler: TextAssembler,
        model: ModelInfo,
        active: ActiveRequest,
        constraint_field: str,
        direct: DirectPath | None = None,
    ) -> None:
        """`constraint_field` is the request's field that the engine's constraint was made of.

        `direct` is the path of `tokens` past their reader; None: there is none.
        """
        self.tokens = tokens
        self._constraint_field = constraint_field
        self._direct = direct
        self._unsent: list[Progress] = []
        """Messages of tokens that were taken past the reader, for the reader to send."""
        self._failure: Exception | None = None
        """What was raised for such tokens."""
        self.stopped = False
        """Whether a stop string has ended the text; the tokens that follow are not needed."""
        self._assembler = assembler
        self._model = model
        self._active = active
        span = active.account.generation
        self._recorded = span if span.span.is_recording() else None
        # Reports the time to first token, once. Call it after each message was sent.
        self.report_first_text = active.account.report_first_text

    async def __aenter__(self) -> Generation:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._direct is not None:
            self._direct.close()  # it references this object
        try:
            await self.tokens.aclose()
        finally:
            self._active.account.end_generation(kind, error, traceback)
        if isinstance(error, MeshError) and (error.param or "").startswith("constraint"):
            raise error.renamed(self._constraint_field) from error

    def send_directly(self, call: DirectCall, send: Callable[[Progress], Taken]) -> None:
        """Calls `send` with what arrives while the reader of `tokens` waits, without the reader.

        That is nearly all text: a token then costs no turn of a task in this process. The reader
        gets what needs it: the finish, failures, all tokens while `call` takes none, and messages
        that `send` has not sent.
        """
        if self._direct is None:
            return

        def take(chunk: TokenChunk, retry: Callable[[], None]) -> Taken:
            if chunk.finish is not None or chunk.prompt_logprobs:
                return Taken.NONE
            if not call.takes_now:
                return Taken.LATER if call.when_sent(retry) else Taken.NONE
            try:
                return self._take(chunk, send)
            except Exception as error:
                self._failure = error  # of the request, not of the engine's call
                return Taken.WAKE

        self._direct.lead_to(take)

    def _take(self, chunk: TokenChunk, send: Callable[[Progress], Taken]) -> Taken:
        """Sends the messages of a chunk, or keeps them for the reader."""
        messages = self.push(chunk)
        if not messages:
            return Taken.ALL
        several = len(messages) > 1 or self.stopped
        result = Taken.NONE if several else send(messages[0])
        if result is Taken.NONE:
            self._unsent = messages
            return Taken.WAKE
        self.report_first_text()
        return result

    def echo(self, chunk: TokenChunk, in_parts: bool) -> Iterator[Progress]:
        """The messages of a prompt with log probabilities, to be sent before the chunk is pushed.

        The event loop must run between two of them. Raises MeshError.
        """
        for delta in self._assembler.echo(chunk.prompt_logprobs, in_parts):
            self._record_delta(delta)
            yield Progress(
                None if self._active.started else start(self._model, self._active), delta
            )
            self.report_first_text()

    def push(self, chunk: TokenChunk) -> list[Progress]:
        """Records the chunk and returns the messages to send, often none or one.

        The first message has the start, the last one the finish. Raises MeshError.
        """
        if self._failure is not None:
            raise self._failure
        if self._unsent:
            unsent, self._unsent = self._unsent, []
            return unsent if self.stopped else [*unsent, *self.push(chunk)]
        active = self._active
        if chunk.token_ids:
            active.state = RequestState.STREAMING
            active.account.generated(len(chunk.token_ids))
        deltas = self._assembler.push(chunk)
        finish = chunk.finish
        stop_string = self._assembler.stop_string
        if stop_string:
            self.stopped = True
            usage = active.account.usage if finish is None else finish.usage
            finish = GenerationFinish(FinishReason.STOP, usage, stop_string)
        if finish is not None:
            finish = active.account.finished(finish)
        for delta in deltas:
            self._record_delta(delta)
        if self._recorded is not None and chunk.token_ids:
            self._recorded.pushed(has_text=bool(deltas))
        started = None if active.started else start(self._model, active)
        if len(deltas) < 2:  # at most one message: nothing is sent if the text is held back
            if deltas or started is not None or finish is not None:
                return [Progress(started, deltas[0] if deltas else None, finish)]
            return []
        echo, delta = deltas
        return [Progress(started, echo), Progress(None, delta, finish)]

    def _record_delta(self, delta: Delta) -> None:
        account = self._active.account
        done = delta.num_tokens
        if account.ttft_seconds is None:
            done += account.prompt_tokens
        self._active.permit.progress(done)
        account.delta(delta)


def start(model: ModelInfo, active: ActiveRequest) -> GenerationStarted:
    """The start of a generation, to be sent now."""
    active.started = True
    return GenerationStarted(model.name, active.account.prompt_tokens, active.tool_prompt)


def abort(model: ModelInfo, active: ActiveRequest) -> Progress:
    """The last message of a generation that an operator has ended."""
    started = None if active.started else start(model, active)
    return Progress(started, finish=active.account.end_early(FinishReason.ABORT))
