"""Computes a planned step with the model, and samples the next tokens."""

from __future__ import annotations

from collections import abc
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from inference.engine.step_loop import PendingStep
from inference.kv_cache.kv_cache import KVCache
from inference.model.factory import Model
from inference.runner.invariance import Invariance
from inference.runner.staging import Fetch, to_device
from inference.runner.step import Step
from inference.sampling.logprobs import prompt_logprobs
from inference.sampling.sampler import Sampler, SamplerOutput, sample_tokens
from inference.scheduler.scheduler_output import Row, SchedulerOutput, rows_of
from inference.scheduler.sequence import Sequence
from inference.scheduler.step_result import StepResult
from inference.structured_output.masks import MaskWorker
from mesh.protocol.logprobs import TokenLogprob

if TYPE_CHECKING:
    from inference.model.lora.adapted import Adapter


class ModelRunner:
    """Implements `Runner`: the only part of the engine that touches tensors."""

    def __init__(
        self,
        model: Model,
        cache: KVCache,
        masks: MaskWorker,
        sampler: Sampler,
        *,
        supports_async_scheduling: bool = False,
        invariance: Invariance = Invariance.NONE,
    ) -> None:
        """`supports_async_scheduling`: the device runs asynchronously, and tokens stay on it.

        `invariance` selects the steps that are computed with batch-invariant kernels.
        """
        self.supports_async_scheduling = supports_async_scheduling
        self._model = model
        self._cache = cache
        self._masks = masks
        self._sampler = sampler
        self._invariance = invariance

    @torch.inference_mode()
    def launch(self, plan: SchedulerOutput, previous: PendingStep | None = None) -> LaunchedStep:
        """Start computing a step; its result has a token for each row of `plan.sampling`.

        `previous` is the step that a plan with `previous_indices` continues.
        """
        if previous is not None:
            assert isinstance(previous, LaunchedStep), "the step is another runner's"
            return self._launch_overlapped(plan, previous)
        sampling = plan.sampling
        masks = self._masks.start(sampling)  # computed while the model runs
        try:
            logits = self.logits(plan)
        finally:
            wanted = None if masks is None else masks.result()
        if logits is None:
            return LaunchedStep(None)
        logits, prompt = _take_prompt_rows(logits, plan)
        return LaunchedStep(sample_tokens(logits, rows_of(sampling), self._sampler, wanted), prompt)

    def _launch_overlapped(self, plan: SchedulerOutput, previous: LaunchedStep) -> LaunchedStep:
        is_invariant = self._invariance.holds_for(plan.sequences)
        step = _overlapped_step(plan, previous.token_ids, is_invariant)
        logits = self._model.compute(step, self._cache)
        assert logits is not None, "each sequence of an overlapped step samples"
        rows = [Row(sequence, num_ahead=1) for sequence in plan.sequences]
        return LaunchedStep(sample_tokens(logits, rows, self._sampler))

    @torch.inference_mode()
    def logits(self, plan: SchedulerOutput) -> Tensor | None:
        """Compute the planned tokens; returns the logits to read, None if there are none.

        A sequence's rows lie together: first its prompt positions, then the rows to sample.
        """
        step = _step(plan, self._invariance.holds_for(plan.sequences))
        return self._model.compute(step, self._cache)

    @torch.inference_mode()
    def recover(self, blocks: abc.Sequence[int]) -> None:
        """Zero what a failed step may have stored in these blocks; raises if the device is lost.

        No live sequence may still read them.
        """
        self._cache.zero(blocks)


class LaunchedStep:
    """A step that the device has been given. Implements `PendingStep`."""

    def __init__(
        self,
        sampling: SamplerOutput | None,
        prompt_logprobs: Mapping[str, list[TokenLogprob]] = MappingProxyType({}),
    ) -> None:
        """`sampling` is None for a step that samples nothing."""
        self._sampling = sampling
        self._prompt_logprobs = prompt_logprobs

    @property
    def token_ids(self) -> Tensor:
        """[num_rows] int64 on the device; -1 where no token could be sampled."""
        assert self._sampling is not None, "the step samples nothing"
        assert isinstance(self._sampling.token_ids, Fetch), "the tokens are not on the device"
        return self._sampling.token_ids.values

    @torch.inference_mode()
    def result(self) -> StepResult:
        """Wait for this step, and not for an overlapped one that was launched after it."""
        tokens = [] if self._sampling is None else self._sampling.result()
        return StepResult(tokens, self._prompt_logprobs)


def _overlapped_step(plan: SchedulerOutput, token_ids: Tensor, is_invariant: bool) -> Step:
    """One token of each sequence, from the tokens that the previous step samples on the device."""
    assert plan.previous_indices is not None, "the plan continues no step"
    # A sequence with no sampled token is about to end, so any id will do.
    device_token_ids = token_ids.clamp(min=0)
    num_rows = len(plan.scheduled)
    if len(plan.previous_indices) != len(token_ids):
        indices = to_device(np.array(plan.previous_indices), token_ids.device)
        device_token_ids = device_token_ids[indices]
    sequences = plan.sequences
    return Step(
        token_ids=[0] * num_rows,
        positions=[sequence.num_tokens for sequence in sequences],
        begins=list(range(num_rows + 1)),
        block_tables=[sequence.block_table for sequence in sequences],
        outputs=list(range(num_rows)),
        adapters=_adapters(sequences),
        device_token_ids=device_token_ids,
        is_invariant=is_invariant,
    )


def _step(plan: SchedulerOutput, is_invariant: bool) -> Step:
    token_ids: list[int] = []
    positions: list[int] = []
    begins = [0]
    outputs: list[int] = []
    for sequence, num_tokens, samples, drafts, prompt_positions in plan.scheduled:
        begin = sequence.num_computed_tokens
        end = begin + num_tokens
        token_ids += sequence.token_ids[begin:end]
        token_ids += drafts
        positions += range(begin, end)
        begins.append(len(token_ids))
        outputs += (begins[-2] + position - begin for position in prompt_positions)
        if samples:
            outputs += range(len(token_ids) - len(drafts) - 1, len(token_ids))
    return Step(
        token_ids=token_ids,
        positions=positions,
        begins=begins,
        block_tables=[sequence.block_table for sequence in plan.sequences],
        outputs=outputs,
        adapters=_adapters(plan.sequences),
        is_invariant=is_invariant,
    )


def _adapters(sequences: abc.Sequence[Sequence]) -> list[Adapter | None]:
    """The LoRA adapter of each sequence; empty if none has one."""
    adapters = [sequence.adapter for sequence in sequences]
    return adapters if any(adapters) else []


def _take_prompt_rows(
    logits: Tensor, plan: SchedulerOutput
) -> tuple[Tensor, dict[str, list[TokenLogprob]]]:
    """Split the logits into the rows to sample, and log probabilities of prompts by request id."""
    prompt: dict[str, list[TokenLogprob]] = {}
    sampled: list[Tensor] = []
    row = 0
    if not any(scheduled.prompt_positions for scheduled in plan.scheduled):
        return logits, prompt
    for sequence, _, samples, drafts, positions in plan.scheduled:
        if positions:
            rows = logits[row : row + len(positions)]
            prompt[sequence.request_id] = prompt_logprobs(rows, sequence, positions)
            row += len(positions)
        if samples:
            num_rows = 1 + len(drafts)
            sampled.append(logits[row : row + num_rows])
            row += num_rows
    return torch.cat(sampled) if sampled else logits[:0], prompt
