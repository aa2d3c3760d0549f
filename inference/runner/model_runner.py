"""Turns a scheduled batch into a step of the model, runs it, and samples."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Rows
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inference.kv_cache.kv_cache import KVCache
from inference.model.factory import Model
from inference.runner.invariance import Invariance
from inference.runner.staging import Fetch, to_device
from inference.runner.step import Step
from inference.sampling.logprobs import prompt_logprobs
from inference.sampling.sampler import Drawer, Sampling, sample
from inference.scheduler.batch import Batch, StepResult
from inference.scheduler.speculation import Row, rows_of
from inference.structured_output.masks import MaskWorker
from mesh.protocol.logprobs import TokenLogprob


class ModelRunner:
    """The only part of the engine that touches tensors."""

    def __init__(
        self,
        model: Model,
        cache: KVCache,
        masks: MaskWorker,
        drawer: Drawer,
        *,
        runs_ahead: bool = False,
        invariance: Invariance = Invariance.NONE,
    ) -> None:
        """`runs_ahead`: the device computes by itself, and the drawer's tokens stay there.

        `invariance` says which steps the model is to compute so.
        """
        self.runs_ahead = runs_ahead
        self._model = model
        self._cache = cache
        self._masks = masks
        self._drawer = drawer
        self._invariance = invariance

    @torch.inference_mode()
    def launch(self, batch: Batch, behind: Any = None) -> LaunchedStep:
        """Starts with the scheduled tokens; a token for each row of `batch.sampling`.

        `behind` is the step that a batch with `rows_before` follows.
        """
        if behind is not None:
            assert isinstance(behind, LaunchedStep)
            return self._launch_behind(batch, behind)
        sampling = batch.sampling
        masks = self._masks.start(sampling)  # computed while the model runs
        try:
            logits = self.logits(batch)
        finally:
            wanted = None if masks is None else masks.result()
        if logits is None:
            return LaunchedStep(None)
        logits, prompt = _take_prompt_rows(logits, batch)
        return LaunchedStep(sample(logits, rows_of(sampling), self._drawer, wanted), prompt)

    def _launch_behind(self, batch: Batch, behind: LaunchedStep) -> LaunchedStep:
        step = _step_behind(batch, behind.token_ids, self._invariance.holds_for(batch.sequences))
        logits = self._model.compute(step, self._cache)
        assert logits is not None, "each sequence wants a token"
        rows = [Row(sequence, num_ahead=1) for sequence in batch.sequences]
        return LaunchedStep(sample(logits, rows, self._drawer))

    @torch.inference_mode()
    def logits(self, batch: Batch) -> Tensor | None:
        """Computes the scheduled tokens; logits of the rows that `_step` wants, None for none."""
        step = _step(batch, self._invariance.holds_for(batch.sequences))
        return self._model.compute(step, self._cache)

    @torch.inference_mode()
    def recover(self, blocks: Rows[int]) -> None:
        """Zeroes what a broken step may have stored in these blocks; raises if the device is lost.

        No live sequence may still read them.
        """
        self._cache.zero(blocks)


class LaunchedStep:
    """A step that the device has been given. Implements `inference.engine.engine.Launched`."""

    def __init__(
        self,
        sampling: Sampling | None,
        prompt_logprobs: Mapping[str, list[TokenLogprob]] = MappingProxyType({}),
    ) -> None:
        """Without `sampling` it samples nothing."""
        self._sampling = sampling
        self._prompt_logprobs = prompt_logprobs

    @property
    def token_ids(self) -> Tensor:
        """[num_rows] in int64, where they are drawn; -1 where nothing could be."""
        assert self._sampling is not None, "it samples nothing"
        assert isinstance(self._sampling.drawn, Fetch), "only what stays on the device can be used"
        return self._sampling.drawn.values

    @torch.inference_mode()
    def result(self) -> StepResult:
        """Waits for the step, not for one that was launched behind it."""
        tokens = [] if self._sampling is None else self._sampling.result()
        return StepResult(tokens, self._prompt_logprobs)


def _step_behind(batch: Batch, token_ids: Tensor, is_invariant: bool) -> Step:
    """A token of each sequence, out of what the step before is drawing."""
    assert batch.rows_before is not None, "it follows no step"
    # Where nothing could be drawn the sequence is about to end, and any id will do.
    drawn = token_ids.clamp(min=0)
    num_rows = len(batch.sequences)
    if len(batch.rows_before) != len(token_ids):
        drawn = drawn[to_device(np.array(batch.rows_before), drawn.device)]
    return Step(
        token_ids=[0] * num_rows,
        positions=[sequence.num_tokens for sequence in batch.sequences],
        begins=list(range(num_rows + 1)),
        block_tables=[sequence.block_table for sequence in batch.sequences],
        outputs=list(range(num_rows)),
        drawn=drawn,
        is_invariant=is_invariant,
    )


def _step(batch: Batch, is_invariant: bool) -> Step:
    token_ids: list[int] = []
    positions: list[int] = []
    begins = [0]
    outputs: list[int] = []
    for sequence in batch.sequences:
        begin = sequence.num_computed_tokens
        end = begin + sequence.num_scheduled_tokens
        token_ids += sequence.token_ids[begin:end]
        token_ids += sequence.draft_token_ids
        positions += range(begin, end)
        begins.append(len(token_ids))
        outputs += (begins[-2] + position - begin for position in sequence.prompt_rows)
        if sequence.samples_this_step:
            num_outputs = 1 + len(sequence.draft_token_ids)
            outputs += range(len(token_ids) - num_outputs, len(token_ids))
    return Step(
        token_ids=token_ids,
        positions=positions,
        begins=begins,
        block_tables=[sequence.block_table for sequence in batch.sequences],
        outputs=outputs,
        is_invariant=is_invariant,
    )


def _take_prompt_rows(logits: Tensor, batch: Batch) -> tuple[Tensor, dict[str, list[TokenLogprob]]]:
    """The rows that are sampled, and what the others say of their sequences' prompts."""
    prompt: dict[str, list[TokenLogprob]] = {}
    sampled: list[Tensor] = []
    row = 0
    if not any(sequence.prompt_rows for sequence in batch.sequences):
        return logits, prompt
    for sequence in batch.sequences:
        num_prompt_rows = len(sequence.prompt_rows)
        if num_prompt_rows:
            rows = logits[row : row + num_prompt_rows]
            prompt[sequence.request_id] = prompt_logprobs(rows, sequence)
            row += num_prompt_rows
        if sequence.samples_this_step:
            num_rows = 1 + len(sequence.draft_token_ids)
            sampled.append(logits[row : row + num_rows])
            row += num_rows
    return torch.cat(sampled) if sampled else logits[:0], prompt
