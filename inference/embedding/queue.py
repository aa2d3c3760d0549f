"""Where calls for embeddings wait for the one thread that computes them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from inference.engine.errors import ContextTooLong, InvalidPrompt, Overloaded
from inference.engine.interface import ModelInfo

MAX_INPUTS = 64
"""In one call; a caller with more makes several calls, and others come in between."""

MAX_WAITING = 32
"""Calls that wait behind the one that runs."""

Inputs = Sequence[Sequence[int]]


class InputEmbedder(Protocol):
    """Computes the vectors of a call; blocks."""

    def embed(self, inputs: Inputs) -> list[list[float]]:
        """One vector for each input, in order."""
        ...


class EmbeddingQueue:
    """A line with a bound, and its thread. For one event loop."""

    def __init__(self, begin_thread: Callable[[], None] | None = None) -> None:
        """Close it with `close`. `begin_thread` is called in its thread, first of all."""
        # A single one: two forward passes at once would only take turns on the same cores.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embed", initializer=begin_thread)
        self._pending: set[Future[list[list[float]]]] = set()

    async def embed(self, embedder: InputEmbedder, inputs: Inputs) -> list[list[float]]:
        """The vectors of checked inputs. Cancelling takes a call that waits out of the line.

        Raises Overloaded where the line is full.
        """
        self._pending = {future for future in self._pending if not future.done()}
        if len(self._pending) > MAX_WAITING:
            raise Overloaded(f"at most {MAX_WAITING} calls for embeddings may wait")
        future = self._thread.submit(embedder.embed, inputs)
        self._pending.add(future)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Drops what waits; what runs goes on to its end."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def check_inputs(inputs: Inputs, model: ModelInfo) -> None:
    """Raises InvalidPrompt or ContextTooLong for the first input that cannot be embedded."""
    if not 1 <= len(inputs) <= MAX_INPUTS:
        raise InvalidPrompt(f"a call must have 1 to {MAX_INPUTS} inputs. Given: {len(inputs)}")
    for token_ids in inputs:
        if not token_ids:
            raise InvalidPrompt("an input must hold at least 1 token. Given: 0")
        wrong = next((i for i in token_ids if not 0 <= i < model.vocab_size), None)
        if wrong is not None:
            raise InvalidPrompt(
                f"input token ids must be between 0 and {model.vocab_size - 1}. Given: {wrong}"
            )
        if len(token_ids) > model.max_context:
            raise ContextTooLong(
                f"an input must be at most the context of {model.max_context} tokens. "
                f"Given: {len(token_ids)}"
            )
