"""Computes the number of KV cache blocks from the memory that steps leave free."""

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

Capture = Callable[[KVCache], object]
"""Captures CUDA graphs on a cache and returns an object that owns them."""

logger = logging.getLogger(__name__)

FREE_MEMORY_SHARE = 0.5
"""Largest share of a CPU's memory, as free after loading, that the KV cache takes."""

GPU_MEMORY_SHARE = 0.9
"""Share of a GPU's free memory for the KV cache, activations and graphs together."""

MAX_CPU_KV_TOKENS = 131_072


def num_kv_blocks(
    model: Model,
    *,
    block_size: int,
    num_tokens: int,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    max_context: int,
    capture: Capture | None,
    kinds: Collection[bool] = (False,),
) -> int:
    """The number of blocks, at least one; `num_tokens` 0 means as many as fit in memory.

    On a GPU a profile run first executes warm-up steps and the largest step of each of the `kinds`
    (batch-invariant or not), and captures decode steps, on a temporary cache. It measures their
    memory and compiles all kernels before the first request.
    Raises ModelLoadError if no memory is left.
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
    blocks_each = -(-max_context // block_size)  # sequences never share their last block
    num_blocks = min(most // block_size, max_num_seqs * blocks_each)
    if not num_blocks:
        raise ModelLoadError("no memory is left for the KV cache; choose a smaller model or dtype")
    return num_blocks


@torch.inference_mode()
def _free_on_gpu(model: Model, steps: list[Step], block_size: int, capture: Capture | None) -> int:
    """Bytes that the KV cache can take while any of these steps runs."""
    num_blocks = 1 + max(max(table) for step in steps for table in step.block_tables)
    try:
        cache = KVCache(model.config, num_blocks, block_size, model.dtype, model.device)
        activations, graphs = _measure(model, steps, cache, capture)
    except torch.cuda.OutOfMemoryError as error:
        raise ModelLoadError(
            f"INFERENCE_MAX_NUM_BATCHED_TOKENS is too large for this GPU's memory: {error}"
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
    model: Model, steps: list[Step], cache: KVCache, capture: Capture | None
) -> tuple[int, int]:
    """Bytes of the largest step's activations, and of all graphs."""
    for step in steps:
        _compute(model, step, cache)
    activations = max(_peak_bytes(partial(_compute, model, step, cache)) for step in steps)
    return activations, 0 if capture is None else _held_bytes(lambda: capture(cache))


def _compute(model: Model, step: Step, cache: KVCache) -> None:
    logits = model.compute(step, cache)
    assert logits is not None, "a profile step computes all logits"
    torch.log_softmax(logits, dim=-1)  # as for a request with prompt logprobs


def _peak_bytes(compute: Callable[[], object]) -> int:
    """Peak bytes that `compute` allocates in addition to existing tensors."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    compute()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _held_bytes(make: Callable[[], object]) -> int:
    """Bytes of device memory that the result of `make` holds, including the driver's."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before, _ = torch.cuda.mem_get_info()
    made = make()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    after, _ = torch.cuda.mem_get_info()
    del made
    return max(before - after, 0)
