"""Paged attention: queries of this step against keys and values in the cache.

Written with torch's own operations, so it runs on any device. The sequences that decode go
through one batched call, each chunk of a prompt through a call of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A prompt's piece: rows [begin, end) of the step, against the `slots` of its context."""

    begin: int
    end: int
    slots: Tensor
    """[num_context] of all its tokens up to the end of this piece."""
    mask: Tensor | None
    """[num_queries, num_context] of what may be seen; None where plain causal does it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionPlan:
    """Who looks at what in a step; made once, used by every layer."""

    slot_mapping: Tensor
    """[num_tokens]: where each token's key and value go."""
    num_decodes: int
    """The first rows of the step are single tokens of decoding sequences."""
    decode_blocks: Tensor | None
    """[num_decodes, most blocks], padded with block 0."""
    decode_mask: Tensor | None
    """[num_decodes, 1, 1, most blocks * block_size], added to the scores: 0 or minus infinity."""
    block_size: int
    chunks: tuple[Chunk, ...]


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    cache: tuple[Tensor, Tensor],
    plan: AttentionPlan,
) -> Tensor:
    """Stores this step's keys and values, and gives what the queries see.

    `queries` [num_tokens, num_heads, head_dim], `keys` and `values` with num_kv_heads; returns
    [num_tokens, num_heads * head_dim].
    """
    cached_keys, cached_values = cache
    cached_keys.index_copy_(0, plan.slot_mapping, keys)
    cached_values.index_copy_(0, plan.slot_mapping, values)
    grouped = queries.shape[1] != keys.shape[1]
    outputs: list[Tensor] = []
    if plan.decode_blocks is not None:
        # The query heads that share a KV head stand as its queries: nothing is repeated.
        # [num_decodes, num_kv_heads, group, head_dim] against [num_decodes, num_kv_heads, context]
        seen = F.scaled_dot_product_attention(
            queries[: plan.num_decodes].reshape(plan.num_decodes, keys.shape[1], -1, keys.shape[2]),
            _gather_blocks(cached_keys, plan.decode_blocks, plan.block_size),
            _gather_blocks(cached_values, plan.decode_blocks, plan.block_size),
            attn_mask=plan.decode_mask,
        )
        outputs.append(seen.flatten(1))
    for chunk in plan.chunks:
        seen = F.scaled_dot_product_attention(
            queries[chunk.begin : chunk.end].transpose(0, 1).unsqueeze(0),
            cached_keys[chunk.slots].transpose(0, 1).unsqueeze(0),
            cached_values[chunk.slots].transpose(0, 1).unsqueeze(0),
            attn_mask=chunk.mask,
            is_causal=chunk.mask is None,
            enable_gqa=grouped,
        )
        outputs.append(seen[0].transpose(0, 1).flatten(1))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _gather_blocks(cached: Tensor, blocks: Tensor, block_size: int) -> Tensor:
    """[num_rows, num_kv_heads, context, head_dim] of the rows' blocks.

    Whole blocks lie together in memory: copying them is several times as fast as their slots.
    """
    num_rows = len(blocks)
    _, num_kv_heads, head_dim = cached.shape
    gathered = cached.view(-1, block_size * num_kv_heads * head_dim).index_select(
        0, blocks.flatten()
    )
    return gathered.view(num_rows, -1, num_kv_heads, head_dim).transpose(1, 2)


def chunk_mask(
    num_queries: int, num_context: int, window: int | None, device: torch.device
) -> Tensor | None:
    """What the last `num_queries` of `num_context` tokens may see; None where causal suffices."""
    if num_queries == num_context and (window is None or num_context <= window):
        return None
    rows = torch.arange(num_context - num_queries, num_context, device=device).unsqueeze(1)
    columns = torch.arange(num_context, device=device).unsqueeze(0)
    seen = columns <= rows
    return seen if window is None else seen & (columns > rows - window)
