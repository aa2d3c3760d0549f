"""Embedding calls: what a caller waits for, their limits, and the checks of their inputs."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Callable, Iterable, Sequence

from inference.api import spans
from inference.engine.emptiness import Emptiness
from inference.engine.errors import (
    ContextTooLong,
    EngineError,
    InvalidPrompt,
    Overloaded,
)
from inference.engine.interface import ModelInfo
from mesh.errors import context_too_long_message

MAX_INPUTS = 64
"""Most inputs per call. A caller with more makes several calls."""

MAX_CALLS = 33
"""Most calls that an engine accepts at once."""

MAX_LIVE_TOKENS = 600_000
"""Most tokens of all calls at once. Calls that wait have ids only, no keys and values, and take
turns by input; so a small call beside two large jobs is accepted, and soon done."""

Inputs = Sequence[Sequence[int]]


class EmbeddingCall:
    """Checked inputs, and their vectors so far. Made by `EmbeddingCalls`; the engine fills it."""

    __slots__ = ("abandoned", "begin", "error", "inputs", "num_first_tokens", "vectors")

    def __init__(self, inputs: Inputs, num_first_tokens: Sequence[int] = ()) -> None:
        self.inputs = [array("q", token_ids) for token_ids in inputs]
        self.num_first_tokens = num_first_tokens
        """Of pairs of texts: how many tokens of each input are of type 0. Empty: all are."""
        self.vectors: list[list[float]] = []
        """Of the first inputs, in order: each [hidden_size], or of a pair its score [1]."""
        self.error: EngineError | None = None
        """Why the call has ended without all vectors."""
        self.begin: float | None = None
        """When its first piece began, in `time.monotonic()` seconds."""
        self.abandoned = False
        """Set when the caller has left: nothing more of it is computed."""

    @property
    def has_ended(self) -> bool:
        return self.error is not None or len(self.vectors) == len(self.inputs)


class EmbeddingCalls:
    """The callers' side: calls that wait for their vectors, all on one event loop."""

    def __init__(self, submit: Callable[[EmbeddingCall], EngineError | None]) -> None:
        """`submit` passes a call to the engine, or returns why it does not."""
        self._submit = submit
        self._ended: dict[EmbeddingCall, asyncio.Future[None]] = {}
        self._num_tokens = 0
        self.empty = Emptiness()

    @property
    def num_live(self) -> int:
        return len(self._ended)

    async def embed(
        self, inputs: Inputs, num_first_tokens: Sequence[int] = ()
    ) -> list[list[float]]:
        """Return the vectors of checked inputs; cancelling ends the call within one piece.

        Raises Overloaded beyond `MAX_CALLS` or `MAX_LIVE_TOKENS`, or the error that ended the call.
        """
        num_tokens = sum(map(len, inputs))
        self._check_limits(num_tokens)
        call = EmbeddingCall(inputs, num_first_tokens)
        ended = self._ended[call] = asyncio.get_running_loop().create_future()
        self._num_tokens += num_tokens
        self.empty.update(is_empty=False)
        arrival, failure = time.monotonic(), None
        try:
            refusal = self._submit(call)
            if refusal is not None:
                raise refusal
            await ended
        except BaseException as error:
            failure = error
            raise
        finally:
            spans.record_embeddings(arrival, call.begin, failure or call.error)
            call.abandoned = True
            del self._ended[call]
            self._num_tokens -= num_tokens
            self.empty.update(is_empty=not self._ended)
        if call.error is not None:
            raise call.error
        return call.vectors

    def deliver(self, calls: Iterable[EmbeddingCall]) -> None:
        """Wake the callers of calls that have ended, unless they have left."""
        for call in calls:
            ended = self._ended.get(call)
            if ended is not None and not ended.done():
                ended.set_result(None)

    def end_all(self, error: EngineError) -> None:
        """End every call with an error, without waiting for the engine."""
        for call in self._ended:
            call.error = error
        self.deliver(list(self._ended))

    def _check_limits(self, num_tokens: int) -> None:
        if self.num_live >= MAX_CALLS:
            raise Overloaded(
                f"at most {MAX_CALLS} embedding calls may be live. Live: {self.num_live}"
            )
        if self._num_tokens + num_tokens > MAX_LIVE_TOKENS:
            raise Overloaded(
                f"embedding calls may have at most {MAX_LIVE_TOKENS} tokens together. "
                f"Live: {self._num_tokens}. Given: {num_tokens}"
            )


def check_inputs(inputs: Inputs, model: ModelInfo, kv_capacity_tokens: int) -> None:
    """Raise InvalidPrompt or ContextTooLong for the first input that cannot be embedded."""
    if not 1 <= len(inputs) <= MAX_INPUTS:
        raise InvalidPrompt(
            f"inputs must have 1 to {MAX_INPUTS} items. Given: {len(inputs)}", field="inputs"
        )
    most = min(model.max_context, kv_capacity_tokens)
    for number, token_ids in enumerate(inputs):
        field = f"inputs[{number}]"
        if not token_ids:
            raise InvalidPrompt(f"{field} must hold at least 1 token. Given: 0", field=field)
        for outermost in (min(token_ids), max(token_ids)):
            if not 0 <= outermost < model.vocab_size:
                raise InvalidPrompt(
                    f"{field} must hold token ids from 0 to {model.vocab_size - 1}. "
                    f"Given: {outermost}",
                    field=field,
                )
        if len(token_ids) > most:
            raise ContextTooLong(
                context_too_long_message(most, f"{field} has {len(token_ids)} tokens."),
                field=field,
            )
