"""A model whose small steps are CUDA graphs: the host launches one graph, not many kernels."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection
from functools import partial
from itertools import pairwise, product

import numpy as np
import torch
from torch import Tensor

from inference.kv_cache.kv_cache import KVCache
from inference.model.llama import Llama
from inference.runner.cuda_graphs.decode_buffers import DecodeBuffers, batch_sizes
from inference.runner.staging import to_device
from inference.runner.step import Step

Replay = Callable[[], Tensor]
Capture = Callable[[Callable[[], Tensor]], Replay]
"""Captures the device work of a function; the returned function replays it.

The function's tensors must stay at their addresses. Each replay returns the same tensor.
"""


MAX_ROWS_EACH = 16
"""Most rows of a sequence, which has drafts, in a captured step: each row reads all its keys and
values again."""


class GraphedModel:
    """Implements `Model`. Steps with longer chunks of prompts run without a graph."""

    def __init__(
        self,
        model: Llama,
        cache: KVCache,
        *,
        max_num_rows: int,
        max_context: int,
        capture: Capture,
        kinds: Collection[bool] = (False,),
    ) -> None:
        """Capture a graph for each of `batch_sizes`; they work on this `cache` only.

        `kinds`: whether steps are batch-invariant, from `Invariance.kinds`.
        """
        self.model = model
        self.config = model.config
        self.num_parameters = model.num_parameters
        self.dtype = model.dtype
        self.device = model.device
        self.num_replayed_steps = 0
        self._cache = cache
        self._buffers = DecodeBuffers(
            cache, max_num_rows=max_num_rows, max_context=max_context, device=model.device
        )
        self._sizes = batch_sizes(max_num_rows)
        self._replays: dict[tuple[bool, int], Replay] = {}
        with torch.inference_mode():
            # The largest first: the others reuse the memory that it frees in the shared pool.
            for size, kind in product(reversed(self._sizes), kinds):
                states = partial(model.states, self._buffers.inputs(size), cache, is_invariant=kind)
                self._replays[kind, size] = capture(states)

    def compute(self, step: Step, cache: KVCache) -> Tensor | None:
        """Return logits [len(step.outputs), vocab_size] in float32; None if `outputs` is empty."""
        if cache is not self._cache or not self._serves(step):
            return self.model.compute(step, cache)
        self.num_replayed_steps += 1
        num_rows = len(step.token_ids)
        size = self._sizes[bisect_left(self._sizes, num_rows)]
        self._buffers.fill(step, size)
        states = self._replays[step.is_invariant, size]()[:num_rows]
        if len(step.outputs) < num_rows:
            states = states[to_device(np.array(step.outputs), self.device)]
        # Not captured: each batch size would need separate memory for its logits.
        return self.model.logits(states, is_invariant=step.is_invariant)

    def hidden(self, step: Step, cache: KVCache) -> Tensor:
        """Return the last hidden states [num_tokens, hidden_size] of all rows."""
        return self.model.hidden(step, cache)

    def _serves(self, step: Step) -> bool:
        """Whether a captured graph can run the step."""
        if step.adapters or not step.outputs or len(step.token_ids) > self._sizes[-1]:
            return False
        return max(end - begin for begin, end in pairwise(step.begins)) <= MAX_ROWS_EACH
