"""The queue of inputs of all clients, computed in batches. For the encoder's thread.

Inputs of several calls share a batch. Nothing is padded, so a batch is limited by its tokens alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from inference.api import metrics
from inference.embedding.calls import EmbeddingCall
from inference.embedding.turns import CallInput, CallTurns, mark_begun
from inference.encoder.batch import EncoderInput
from inference.engine.errors import EngineError, InvalidPrompt, SequenceFailed, StepFailed
from inference.engine.watchdog import StepClock
from inference.scheduler.prefill_budget import PrefillBudget

logger = logging.getLogger(__name__)

MAX_FAILURES = 12
"""Batches that may fail in a row before the engine is unhealthy, as steps of generation."""


class BatchModel(Protocol):
    """Computes batches."""

    def compute(self, inputs: Sequence[EncoderInput]) -> NDArray[np.float32]:
        """A row for each input."""
        ...


class EncoderQueue:
    """Live calls and their turns."""

    def __init__(self, model: BatchModel, max_num_batched_tokens: int, target_seconds: float):
        """A batch takes about `target_seconds` while other calls wait, by the measured speed."""
        self.clock = StepClock()
        self.healthy = True
        """False once no further batch can be expected to work."""
        self._model = model
        self._budget = PrefillBudget(max_num_batched_tokens, target_seconds)
        self._turns = CallTurns()
        self._num_failures = 0

    @property
    def has_work(self) -> bool:
        return len(self._turns) > 0

    def add(self, call: EmbeddingCall) -> None:
        """Append a call."""
        self._turns.add(call)

    def run_batch(self) -> list[EmbeddingCall]:
        """Compute the next batch; returns the calls that have ended."""
        for call in [call for call in self._turns.calls if call.abandoned]:
            self._turns.end(call, None)
        begun = self._next_batch()
        if not begun:
            return []
        num_tokens = sum(len(each.call.inputs[each.number]) for each in begun)
        began = time.monotonic()
        self.clock.begin()
        self.clock.includes(num_tokens)
        try:
            rows = self._model.compute([_input(each) for each in begun])
        except Exception as error:
            logger.exception("encoder batch failed", extra={"num_inputs": len(begun)})
            return self._fail(begun, error)
        finally:
            self.clock.end()
        self._num_failures = 0
        seconds = time.monotonic() - began
        self._budget.record(num_tokens, seconds)
        metrics.observe_embeddings(num_tokens)
        metrics.observe_step(num_tokens, seconds)
        ended: list[EmbeddingCall] = []
        for each, row in zip(begun, rows, strict=True):
            ended += self._apply(each, row)
        return ended

    def abort_all(self, error: EngineError) -> list[EmbeddingCall]:
        """End every call with an error, and return them."""
        return [call for call in self._turns.calls if self._turns.end(call, error)]

    def _next_batch(self) -> list[CallInput]:
        budget = self._budget.num_tokens(0, alone=len(self._turns) == 1)
        begun: list[CallInput] = []
        while (turn := self._turns.next()) is not None:
            budget -= len(turn.call.inputs[turn.number])
            if begun and budget < 0:
                break
            mark_begun(turn.call)
            begun.append(self._turns.begin_next())
        return begun

    def _apply(self, each: CallInput, row: NDArray[np.float32]) -> list[EmbeddingCall]:
        call = each.call
        if call.has_ended:  # by another input of the same batch
            return []
        if not np.isfinite(row).all():
            # The input's content is the cause, so another replica would give no other result.
            field = f"inputs[{each.number}]"
            error = InvalidPrompt(f"{field} gives no finite vector with this model", field=field)
            return [call] if self._turns.end(call, error) else []
        call.vectors.append(row.tolist())
        return [call] if call.has_ended and self._turns.end(call, None) else []

    def _fail(self, begun: Sequence[CallInput], error: Exception) -> list[EmbeddingCall]:
        self._num_failures += 1
        self.healthy = self._num_failures < MAX_FAILURES
        calls = list({each.call: None for each in begun})
        kind = SequenceFailed if len(calls) == 1 else StepFailed
        cause = kind(f"the embedding failed: {type(error).__name__}")
        return [call for call in calls if self._turns.end(call, cause)]


def _input(turn: CallInput) -> EncoderInput:
    token_ids = turn.call.inputs[turn.number]
    num_first = turn.call.num_first_tokens
    return EncoderInput(token_ids, num_first[turn.number] if num_first else len(token_ids))
