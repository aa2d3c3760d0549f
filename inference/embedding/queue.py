"""The queue of inputs to embed, computed in pieces between the steps of generation.

A piece is a forward pass over the next tokens of one or more inputs, a few milliseconds long.
The inputs in progress hold blocks of the engine's KV cache; a running sequence that needs them gets
them.
"""

from __future__ import annotations

import logging
import time
from array import array
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from inference.api import metrics
from inference.embedding.calls import EmbeddingCall
from inference.embedding.pace import Pace
from inference.embedding.turns import CallInput, CallTurns, mark_begun
from inference.engine.errors import EngineError, InvalidPrompt, SequenceFailed, StepFailed
from inference.scheduler.block_manager import BlockManager

logger = logging.getLogger(__name__)

CLAIM_SECONDS = 1.0
"""Time that an input waits for blocks before waiting sequences must leave them free."""


class Chunk(NamedTuple):
    """Consecutive tokens of one input, computed in one piece."""

    token_ids: array[int]
    begin: int
    """Position of the first of them in the input; the tokens before it are in the KV cache."""
    blocks: Sequence[int]
    """Blocks of the whole input."""


class InputEmbedder(Protocol):
    """Computes pieces. The only part of embedding that touches tensors."""

    def compute(self, chunks: Sequence[Chunk]) -> list[NDArray[np.float64]]:
        """Return the sum of the last hidden states [hidden_size] of each chunk."""
        ...

    def recover(self, blocks: Sequence[int]) -> None:
        """Clear the blocks of failed inputs; raises if no further piece can work."""
        ...


class _Input:
    """An input in progress."""

    def __init__(self, turn: CallInput) -> None:
        self.call, self.number = turn
        self.token_ids = self.call.inputs[self.number]
        self.blocks: list[int] = []
        self.num_computed = 0
        self.sum: NDArray[np.float64] | None = None
        self.waits_since: float | None = None
        """When it first found too few free blocks."""


class EmbeddingQueue:
    """Live calls and their turns. For the engine's thread."""

    def __init__(
        self, embedder: InputEmbedder, blocks: BlockManager, max_num_batched_tokens: int
    ) -> None:
        self.pace = Pace(max_num_batched_tokens)
        self.healthy = True
        """False once no further piece can be expected to work."""
        self._embedder = embedder
        self._blocks = blocks
        self._turns = CallTurns()
        self._current: _Input | None = None
        """The only input that is partly computed, or that waits for blocks."""

    @property
    def has_work(self) -> bool:
        return len(self._turns) > 0

    def add(self, call: EmbeddingCall) -> None:
        """Append a call."""
        self._turns.add(call)

    def reclaim(self) -> bool:
        """Free the blocks of the input in progress, which begins again later; False: none."""
        current = self._current
        if current is None or not current.blocks:
            return False
        self._free(current)
        return True

    def run_piece(self) -> list[EmbeddingCall]:
        """Compute the next piece; returns the calls that have ended."""
        for call in [call for call in self._turns.calls if call.abandoned]:
            self._end(call, None)
        inputs, chunks = self._next_piece(self.pace.num_tokens)
        if not chunks:
            return []
        began = time.monotonic()
        try:
            sums = self._embedder.compute(chunks)
        except Exception as error:
            logger.exception("embedding piece failed", extra={"num_inputs": len(inputs)})
            is_alone = len({each.call for each in inputs}) == 1
            cause = (SequenceFailed if is_alone else StepFailed)(
                f"the embedding failed: {type(error).__name__}"
            )
            return self._fail(inputs, cause)
        num_tokens = sum(len(chunk.token_ids) for chunk in chunks)
        self.pace.computed(num_tokens, time.monotonic() - began)
        metrics.observe_embeddings(num_tokens)
        ended: list[EmbeddingCall] = []
        for each, chunk, hidden in zip(inputs, chunks, sums, strict=True):
            ended += self._apply(each, len(chunk.token_ids), hidden)
        return ended

    def abort_all(self, error: EngineError) -> list[EmbeddingCall]:
        """End every call with an error, and return them."""
        return [call for call in self._turns.calls if self._end(call, error)]

    def _next_piece(self, budget: int) -> tuple[list[_Input], list[Chunk]]:
        inputs: list[_Input] = []
        chunks: list[Chunk] = []
        while budget > 0:
            current = self._current or self._begin_next()
            if current is None or not self._has_blocks(current):
                break
            end = min(current.num_computed + budget, len(current.token_ids))
            token_ids = current.token_ids[current.num_computed : end]
            inputs.append(current)
            chunks.append(Chunk(token_ids, current.num_computed, current.blocks))
            budget -= len(token_ids)
            if end == len(current.token_ids):
                self._current = None
        return inputs, chunks

    def _begin_next(self) -> _Input | None:
        if self._turns.next() is None:
            return None
        self._current = _Input(self._turns.begin_next())
        return self._current

    def _has_blocks(self, current: _Input) -> bool:
        """Allocate the blocks of an input that begins; False if too few are free."""
        if current.blocks:
            return True
        num_blocks = self._blocks.num_blocks_for(len(current.token_ids))
        blocks = self._blocks.allocate_unshared(num_blocks)
        if blocks is None:
            now = time.monotonic()
            current.waits_since = current.waits_since or now
            if now - current.waits_since >= CLAIM_SECONDS:
                self._blocks.num_claimed_blocks = num_blocks
            return False
        self._blocks.num_claimed_blocks = 0
        mark_begun(current.call)
        current.blocks = blocks
        current.waits_since = None
        return True

    def _apply(
        self, current: _Input, num_tokens: int, hidden: NDArray[np.float64]
    ) -> list[EmbeddingCall]:
        call = current.call
        if call.has_ended:  # by another input of the same piece
            self._free(current)
            return []
        current.sum = hidden if current.sum is None else current.sum + hidden
        current.num_computed += num_tokens
        if not np.isfinite(current.sum).all():
            # The input's content is the cause, so another replica would give no other result.
            field = f"inputs[{current.number}]"
            error = InvalidPrompt(f"{field} gives no finite vector with this model", field=field)
            return self._fail([current], error)
        if current.num_computed < len(current.token_ids):
            return []
        call.vectors.append(_normalised(current.sum))
        self._free(current)
        return [call] if call.has_ended and self._end(call, None) else []

    def _fail(self, inputs: Sequence[_Input], error: EngineError) -> list[EmbeddingCall]:
        # A NaN in a block would outlive its input: see `StepLoop`.
        try:
            self._embedder.recover([block for each in inputs for block in each.blocks])
        except Exception:
            logger.exception("engine cannot recover")
            self.healthy = False
        for each in inputs:
            self._free(each)
        return [call for call in {each.call: None for each in inputs} if self._end(call, error)]

    def _end(self, call: EmbeddingCall, error: EngineError | None) -> bool:
        """Forget a call and free its blocks; False if it had ended before."""
        if not self._turns.end(call, error):
            return False
        if self._current is not None and self._current.call is call:
            self._free(self._current)
            self._blocks.num_claimed_blocks = 0
            self._current = None
        return True

    def _free(self, current: _Input) -> None:
        """Free an input's blocks; what was computed of it is lost."""
        self._blocks.free_unshared(current.blocks)
        current.blocks = []
        current.num_computed = 0
        current.sum = None


def _normalised(total: NDArray[np.float64]) -> list[float]:
    """`total` scaled to length 1; the mean over the tokens has the same direction."""
    length = max(float(np.linalg.norm(total)), 1e-12)
    vector: list[float] = (total / length).tolist()
    return vector
