"""Paged attention with torch's operations, on any device.

All decoding sequences share one batched call; each prefill chunk is a separate call.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillChunk:
    """A chunk of a prompt: rows [begin, end) of the step, with the `slots` of its context."""

    begin: int
    end: int
    slots: Tensor
    """[num_context]: the cache slots of the sequence's tokens up to the chunk's end."""
    mask: Tensor | None
    """[num_queries, num_context], true for visible keys; None for a plain causal mask."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionPlan:
    """Slots and masks of a step's attention; built once and used by every layer."""

    slot_mapping: Tensor
    """[num_tokens]: the cache slot of each token's key and value."""
    num_decodes: int
    """The number of decoding sequences; their single tokens are the step's first rows."""
    decode_blocks: Tensor | None
    """Block tables [num_decodes, most blocks], padded with block 0."""
    decode_mask: Tensor | None
    """[num_decodes, 1, 1, most blocks * block_size], added to the scores: 0 or minus infinity."""
    block_size: int
    chunks: tuple[PrefillChunk, ...]


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    cache: tuple[Tensor, Tensor],
    plan: AttentionPlan,
) -> Tensor:
    """Stores the step's keys and values in the cache and computes the attention.

    `queries` is [num_tokens, num_heads, head_dim], `keys` and `values` have num_kv_heads heads;
    returns [num_tokens, num_heads * head_dim].
    """
    cached_keys, cached_values = cache
    cached_keys.index_copy_(0, plan.slot_mapping, keys)
    cached_values.index_copy_(0, plan.slot_mapping, values)
    grouped = queries.shape[1] != keys.shape[1]
    outputs: list[Tensor] = []
    if plan.decode_blocks is not None:
        # The query heads of a group become queries of their KV head, so nothing is repeated:
        # [num_decodes, num_kv_heads, group, head_dim] against [num_decodes, num_kv_heads, context]
        output = F.scaled_dot_product_attention(
            queries[: plan.num_decodes].reshape(plan.num_decodes, keys.shape[1], -1, keys.shape[2]),
            _gather_blocks(cached_keys, plan.decode_blocks, plan.block_size),
            _gather_blocks(cached_values, plan.decode_blocks, plan.block_size),
            attn_mask=plan.decode_mask,
        )
        outputs.append(output.flatten(1))
    for chunk in plan.chunks:
        output = F.scaled_dot_product_attention(
            queries[chunk.begin : chunk.end].transpose(0, 1).unsqueeze(0),
            cached_keys[chunk.slots].transpose(0, 1).unsqueeze(0),
            cached_values[chunk.slots].transpose(0, 1).unsqueeze(0),
            attn_mask=chunk.mask,
            is_causal=chunk.mask is None,
            enable_gqa=grouped,
        )
        outputs.append(output[0].transpose(0, 1).flatten(1))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _gather_blocks(cached: Tensor, blocks: Tensor, block_size: int) -> Tensor:
    """The keys or values in these blocks, [num_rows, num_kv_heads, context, head_dim].

    Whole blocks are contiguous, so copying blocks is several times as fast as copying slots.
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
    """The keys visible to the last `num_queries` of `num_context` tokens; None for plain causal."""
    if num_queries == num_context and (window is None or num_context <= window):
        return None
    rows = torch.arange(num_context - num_queries, num_context, device=device).unsqueeze(1)
    columns = torch.arange(num_context, device=device).unsqueeze(0)
    visible = columns <= rows
    return visible if window is None else visible & (columns > rows - window)
