"""Turns a scheduled batch into a step of the model, runs it, and samples."""

from __future__ import annotations

from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from inference.batch import Batch, SampledToken
from inference.kv_cache import KVCache
from inference.masks import MaskWorker
from inference.model_factory import Model
from inference.sampler import sample
from inference.step import Step


class ModelRunner:
    """The only part of the engine that touches tensors."""

    def __init__(self, model: Model, cache: KVCache, masks: MaskWorker) -> None:
        self._model = model
        self._cache = cache
        self._masks = masks

    @torch.inference_mode()
    def run(self, batch: Batch) -> list[SampledToken]:
        """Computes the scheduled tokens; a token for each row of `batch.sampling`."""
        sampling = batch.sampling
        masks = self._masks.start(sampling)  # computed while the model runs
        try:
            logits = self.logits(batch)
        finally:
            wanted = None if masks is None else masks.result()
        return [] if logits is None else sample(logits, sampling, wanted)

    @torch.inference_mode()
    def logits(self, batch: Batch) -> Tensor | None:
        """Computes the scheduled tokens; logits for each row of `batch.sampling`, None for none."""
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
