"""The queue of embedding calls, and the single thread that computes them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from inference.engine.errors import ContextTooLong, InvalidPrompt, Overloaded
from inference.engine.interface import ModelInfo
from mesh.errors import context_too_long_message

MAX_INPUTS = 64
"""Most inputs per call. A caller with more makes several calls, so that others get their turn."""

MAX_WAITING = 32
"""Most calls that wait while one runs."""

Inputs = Sequence[Sequence[int]]


class InputEmbedder(Protocol):
    """Computes the vectors of a call."""

    def embed(self, inputs: Inputs) -> list[list[float]]:
        """Return a vector for each input, in order. Blocks."""
        ...


class EmbeddingQueue:
    """A bounded queue and its thread. For one event loop."""

    def __init__(self, set_up_thread: Callable[[], None] | None = None) -> None:
        """`set_up_thread` runs first in the queue's thread. End the thread with `close`."""
        # One thread: two forward passes at once would compete for the same cores.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embed", initializer=set_up_thread)
        self._pending: set[Future[list[list[float]]]] = set()

    async def embed(self, embedder: InputEmbedder, inputs: Inputs) -> list[list[float]]:
        """Return the vectors of checked inputs. Cancelling removes a call that still waits.

        Raises Overloaded if the queue is full.
        """
        self._pending = {future for future in self._pending if not future.done()}
        if len(self._pending) > MAX_WAITING:
            raise Overloaded(f"at most {MAX_WAITING} embedding calls may wait")
        future = self._thread.submit(embedder.embed, inputs)
        self._pending.add(future)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Drop the calls that wait; the one that runs continues to its end."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def check_inputs(inputs: Inputs, model: ModelInfo) -> None:
    """Raise InvalidPrompt or ContextTooLong for the first input that cannot be embedded."""
    if not 1 <= len(inputs) <= MAX_INPUTS:
        raise InvalidPrompt(
            f"inputs must have 1 to {MAX_INPUTS} items. Given: {len(inputs)}", field="inputs"
        )
    for number, token_ids in enumerate(inputs):
        field = f"inputs[{number}]"
        if not token_ids:
            raise InvalidPrompt(f"{field} must hold at least 1 token. Given: 0", field=field)
        wrong = next((i for i in token_ids if not 0 <= i < model.vocab_size), None)
        if wrong is not None:
            raise InvalidPrompt(
                f"{field} must hold token ids from 0 to {model.vocab_size - 1}. Given: {wrong}",
                field=field,
            )
        if len(token_ids) > model.max_context:
            raise ContextTooLong(
                context_too_long_message(
                    model.max_context, f"an input has {len(token_ids)} tokens."
                ),
                field=field,
            )
