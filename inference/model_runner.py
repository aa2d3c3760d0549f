"""Turns a scheduled batch into a step of the model, runs it, and samples."""

from __future__ import annotations

from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from inference.batch import Batch, StepResult
from inference.interface import TokenLogprobs
from inference.kv_cache import KVCache
from inference.logprobs import prompt_logprobs
from inference.masks import MaskWorker
from inference.model_factory import Model
from inference.sampler import Drawer, sample
from inference.step import Step


class ModelRunner:
    """The only part of the engine that touches tensors."""

    def __init__(self, model: Model, cache: KVCache, masks: MaskWorker, drawer: Drawer) -> None:
        self._model = model
        self._cache = cache
        self._masks = masks
        self._drawer = drawer

    @torch.inference_mode()
    def run(self, batch: Batch) -> StepResult:
        """Computes the scheduled tokens; a token for each row of `batch.sampling`."""
        sampling = batch.sampling
        masks = self._masks.start(sampling)  # computed while the model runs
        try:
            logits = self.logits(batch)
        finally:
            wanted = None if masks is None else masks.result()
        if logits is None:
            return StepResult([])
        logits, prompt = _take_prompt_rows(logits, batch)
        return StepResult(sample(logits, sampling, self._drawer, wanted), prompt)

    @torch.inference_mode()
    def logits(self, batch: Batch) -> Tensor | None:
        """Computes the scheduled tokens; logits of the rows that `_step` wants, None for none."""
        return self._model.compute(_step(batch), self._cache)

    @torch.inference_mode()
    def recover(self, blocks: Rows[int]) -> None:
        """Zeroes what a broken step may have stored in these blocks; raises if the device is lost.

        No live sequence may still read them.
        """
        self._cache.zero(blocks)


def _step(batch: Batch) -> Step:
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
    )


def _take_prompt_rows(
    logits: Tensor, batch: Batch
) -> tuple[Tensor, dict[str, list[TokenLogprobs]]]:
    """The rows that are sampled, and what the others say of their sequences' prompts."""
    prompt: dict[str, list[TokenLogprobs]] = {}
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
