"""A model whose small steps are captured: the host starts one graph instead of many kernels."""

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
"""Records what a function does on the device; what it gives back does the same again.

The function's tensors stay where they are, and its result is the same tensor each time.
"""


MAX_ROWS_EACH = 16
"""Of a sequence in a captured step: drafts. Each of them reads its keys and values anew."""


class GraphedModel:
    """Implements `Model`. A step with a longer piece of a prompt runs as it always does."""

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
        """Captures a graph for each of `batch_sizes`; only steps on this `cache` can use them.

        `kinds` says which steps there will be: invariant ones, others, or both.
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
            # The largest first: what it frees of the memory that they share, the others take.
            for size, kind in product(reversed(self._sizes), kinds):
                states = partial(model.states, self._buffers.inputs(size), cache, is_invariant=kind)
                self._replays[kind, size] = capture(states)

    def compute(self, step: Step, cache: KVCache) -> Tensor | None:
        """Logits [len(step.outputs), vocab_size] in float32; None where none are wanted."""
        if cache is not self._cache or not self._serves(step):
            return self.model.compute(step, cache)
        self.num_replayed_steps += 1
        num_rows = len(step.token_ids)
        size = self._sizes[bisect_left(self._sizes, num_rows)]
        self._buffers.fill(step, size)
        states = self._replays[step.is_invariant, size]()[:num_rows]
        if len(step.outputs) < num_rows:
            states = states[to_device(np.array(step.outputs), self.device)]
        # Not captured: the logits of every batch size would need memory of their own.
        return self.model.logits(states, is_invariant=step.is_invariant)

    def hidden(self, step: Step, cache: KVCache) -> Tensor:
        """Last hidden states [num_tokens, hidden_size] of all rows."""
        return self.model.hidden(step, cache)

    def _serves(self, step: Step) -> bool:
        """Whether it is small enough, and something is wanted of it."""
        if not step.outputs or len(step.token_ids) > self._sizes[-1]:
            return False
        return max(end - begin for begin, end in pairwise(step.begins)) <= MAX_ROWS_EACH
