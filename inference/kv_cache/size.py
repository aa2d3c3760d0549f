"""How many blocks the KV cache gets: what memory is left beside all that steps take."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial

import torch

from inference.engine.errors import ModelLoadError
from inference.kv_cache.kv_cache import KVCache
from inference.kv_cache.memory import free_memory
from inference.model.factory import Model
from inference.runner.profile_run import full_step, short_steps
from inference.runner.step import Step

Captures = Callable[[KVCache], object]

logger = logging.getLogger(__name__)

FREE_MEMORY_SHARE = 0.5
"""Of the memory that is free after loading, the KV cache takes at most this; on a GPU more."""

GPU_MEMORY_SHARE = 0.9
"""Of what is free on a GPU; what steps and graphs take goes off that."""

MAX_CPU_KV_TOKENS = 131_072


def num_kv_blocks(
    model: Model,
    *,
    block_size: int,
    num_tokens: int,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    max_context: int,
    capture: Captures | None,
    kinds: Collection[bool] = (False,),
) -> int:
    """At least one. `num_tokens` 0: as many as there is memory for.

    On a GPU the largest step of each of the `kinds` (invariant or not) runs first, and decode steps
    are captured by `capture`, with a cache that is then given up: so it is known what they take,
    and no request waits for a compiler.
    Raises ModelLoadError where no memory is left.
    """
    per_token = KVCache.bytes_per_token(model.config, model.dtype)
    if model.device.type == "cuda":
        short = short_steps(max_context, block_size)
        full = full_step(max_num_batched_tokens, max_context, block_size)
        steps = [replace(step, is_invariant=kind) for step in (*short, full) for kind in kinds]
        most = max(_free_on_gpu(model, steps, block_size, capture), 0) // per_token
    else:
        most = min(int(free_memory() * FREE_MEMORY_SHARE) // per_token, MAX_CPU_KV_TOKENS)
    if num_tokens:
        return max(num_tokens // block_size, 1)
    blocks_each = -(-max_context // block_size)  # a sequence's last block is its own
    num_blocks = min(most // block_size, max_num_seqs * blocks_each)
    if not num_blocks:
        raise ModelLoadError("no memory is left for the KV cache; choose a smaller model or dtype")
    return num_blocks


@torch.inference_mode()
def _free_on_gpu(model: Model, steps: list[Step], block_size: int, capture: Captures | None) -> int:
    """Bytes that the KV cache may take beside any of these steps."""
    num_blocks = 1 + max(max(table) for step in steps for table in step.block_tables)
    try:
        cache = KVCache(model.config, num_blocks, block_size, model.dtype, model.device)
        activations, graphs = _measure(model, steps, cache, capture)
    except torch.cuda.OutOfMemoryError as error:
        raise ModelLoadError(
            f"INFERENCE_MAX_NUM_BATCHED_TOKENS is too much for this GPU's memory: {error}"
        ) from error
    del cache
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    logger.info(
        "memory measured",
        extra={"free_bytes": free, "activation_bytes": activations, "graph_bytes": graphs},
    )
    return int(free * GPU_MEMORY_SHARE) - activations - graphs


def _measure(
    model: Model, steps: list[Step], cache: KVCache, capture: Captures | None
) -> tuple[int, int]:
    """Bytes of activations that a step takes at most, and of all graphs."""
    for step in steps:
        _compute(model, step, cache)
    activations = max(_peak_of(partial(_compute, model, step, cache)) for step in steps)
    return activations, 0 if capture is None else _taken_by(lambda: capture(cache))


def _compute(model: Model, step: Step, cache: KVCache) -> None:
    logits = model.compute(step, cache)
    assert logits is not None, "all rows are wanted"
    torch.log_softmax(logits, dim=-1)  # as where log probabilities of a whole prompt are asked for


def _peak_of(compute: Callable[[], object]) -> int:
    """Bytes that tensors take while it runs, beside those that are there already."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    compute()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _taken_by(make: Callable[[], object]) -> int:
    """Bytes of the device that what it makes holds, the driver's own included."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before, _ = torch.cuda.mem_get_info()
    made = make()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    after, _ = torch.cuda.mem_get_info()
    del made
    return max(before - after, 0)
