"""Paged attention with torch's operations, on any device.

All decoding sequences share one batched call; each prefill chunk is a separate call.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

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


class Scores(NamedTuple):
    """What changes the scores before the softmax, in the families that do."""

    softcap: float | None = None
    """Limit of the scores, by tanh."""
    sinks: Tensor | None = None
    """[num_heads]: a score for each head that takes part in the softmax, without a value."""

    @property
    def are_plain(self) -> bool:
        """Whether the attention is that of Llama."""
        return self.softcap is None and self.sinks is None


PLAIN = Scores()


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    cache: tuple[Tensor, Tensor],
    plan: AttentionPlan,
    scores: Scores = PLAIN,
) -> Tensor:
    """Stores the step's keys and values in the cache and computes the attention.

    `queries` is [num_tokens, num_heads, head_dim], `keys` and `values` have num_kv_heads heads;
    returns [num_tokens, num_heads * head_dim].
    """
    cached_keys, cached_values = cache
    cached_keys.index_copy_(0, plan.slot_mapping, keys)
    cached_values.index_copy_(0, plan.slot_mapping, values)
    num_kv_heads = keys.shape[1]
    outputs: list[Tensor] = []
    if plan.decode_blocks is not None:
        # The query heads of a group become queries of their KV head, so nothing is repeated:
        # [num_decodes, num_kv_heads, group, head_dim] against [num_decodes, num_kv_heads, context]
        grouped = queries[: plan.num_decodes].reshape(
            plan.num_decodes, num_kv_heads, -1, keys.shape[2]
        )
        cached = (
            _gather_blocks(cached_keys, plan.decode_blocks, plan.block_size),
            _gather_blocks(cached_values, plan.decode_blocks, plan.block_size),
        )
        if scores.are_plain:
            output = F.scaled_dot_product_attention(grouped, *cached, attn_mask=plan.decode_mask)
        else:
            sinks = None if scores.sinks is None else scores.sinks.view(1, num_kv_heads, -1, 1)
            output = _attend(grouped, *cached, plan.decode_mask, scores.softcap, sinks)
        outputs.append(output.flatten(1))
    for chunk in plan.chunks:
        rows = queries[chunk.begin : chunk.end].transpose(0, 1).unsqueeze(0)
        stored = (
            cached_keys[chunk.slots].transpose(0, 1).unsqueeze(0),
            cached_values[chunk.slots].transpose(0, 1).unsqueeze(0),
        )
        output = _attend_chunk(rows, *stored, chunk.mask, scores)
        outputs.append(output[0].transpose(0, 1).flatten(1))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _attend_chunk(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scores: Scores
) -> Tensor:
    """[1, num_heads, num_queries, head_dim]; keys and values are [1, num_kv_heads, context, …]."""
    num_kv_heads = keys.shape[1]
    if scores.are_plain:
        return F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=queries.shape[1] != num_kv_heads,
        )
    if mask is None:
        mask = torch.ones(*[keys.shape[2]] * 2, dtype=torch.bool, device=keys.device).tril()
    added = torch.zeros(mask.shape, dtype=queries.dtype, device=mask.device)
    added.masked_fill_(~mask, -math.inf)
    # [num_kv_heads, group, num_queries, head_dim] against [num_kv_heads, 1, context, head_dim]
    grouped = queries[0].view(num_kv_heads, -1, *queries.shape[2:])
    sinks = None if scores.sinks is None else scores.sinks.view(num_kv_heads, -1, 1, 1)
    output = _attend(
        grouped, keys[0].unsqueeze(1), values[0].unsqueeze(1), added, scores.softcap, sinks
    )
    return output.flatten(0, 1).unsqueeze(0)


def _attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """The attention [..., num_queries, head_dim], with the scores limited and with sinks.

    `sinks` [..., num_queries or 1, 1] broadcasts to the scores' last column.
    """
    products = (queries @ keys.transpose(-1, -2)).float() / math.sqrt(queries.shape[-1])
    if softcap is not None:
        products = torch.tanh(products / softcap) * softcap
    if mask is not None:
        products = products + mask
    if sinks is not None:
        column = sinks.float().expand(*products.shape[:-1], 1)
        products = torch.cat((products, column), dim=-1)
    shares = torch.softmax(products, dim=-1)
    if sinks is not None:
        shares = shares[..., :-1]
    return shares.to(values.dtype) @ values


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
