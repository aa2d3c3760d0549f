"""Processes q, k and v between their projection and the attention, in one kernel.

It applies the RMS norm (Qwen3) and the rotary embedding to queries and keys, and writes keys and
values to their slots of the cache. A program handles a tile of a token's query, key or value heads.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_MOST_HEADS = 8


@triton.jit
def _norm_and_rotate(
    source: tl.tensor,
    inside: tl.tensor,
    weight: tl.tensor,
    cosine: tl.tensor,
    sine: tl.tensor,
    low: tl.tensor,
    eps: float,
    HEAD_DIM: tl.constexpr,
    NORMS: tl.constexpr,
    ROTATES: tl.constexpr,
) -> tl.tensor:
    """The lower and upper halves of some heads, each [heads, half], normed and rotated."""
    SIDE: tl.constexpr = HEAD_DIM // 2
    first = tl.load(source, mask=inside, other=0.0)
    second = tl.load(source + SIDE, mask=inside, other=0.0)
    kind = first.dtype
    a = first.to(tl.float32)
    b = second.to(tl.float32)
    if NORMS:
        squares = tl.sum(a * a, axis=1) + tl.sum(b * b, axis=1)
        scale = tl.rsqrt(squares / HEAD_DIM + eps)[:, None]
        is_dim = low < SIDE
        w = tl.load(weight + low, mask=is_dim, other=0.0).to(tl.float32)
        a = ((a * scale).to(kind).to(tl.float32) * w).to(kind).to(tl.float32)
        w = tl.load(weight + SIDE + low, mask=is_dim, other=0.0).to(tl.float32)
        b = ((b * scale).to(kind).to(tl.float32) * w).to(kind).to(tl.float32)
    if ROTATES:
        rotated = a * cosine - b * sine
        b = b * cosine + a * sine
        a = rotated
    return a.to(kind), b.to(kind)


@triton.jit(do_not_specialize_on_alignment=["positions", "slots"])
def _rotate_and_store(
    qkv: tl.tensor,
    queries: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    positions: tl.tensor,
    slots: tl.tensor,
    cosines: tl.tensor,
    sines: tl.tensor,
    q_weight: tl.tensor,
    k_weight: tl.tensor,
    eps: float,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    TILE: tl.constexpr,
    NORMS: tl.constexpr,
    ROTATES: tl.constexpr,
) -> None:
    SIDE: tl.constexpr = HEAD_DIM // 2
    Q_TILES: tl.constexpr = (NUM_HEADS + TILE - 1) // TILE
    KV_TILES: tl.constexpr = (NUM_KV_HEADS + TILE - 1) // TILE
    token = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    low = tl.arange(0, HALF)[None, :]
    row = qkv + token * ((NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM)
    angle = tl.load(positions + token).to(tl.int64) * SIDE + low
    cosine = tl.load(cosines + angle, mask=low < SIDE, other=0.0)
    sine = tl.load(sines + angle, mask=low < SIDE, other=0.0)
    if tile < Q_TILES:
        head = tile * TILE + tl.arange(0, TILE)[:, None]
        inside = (head < NUM_HEADS) & (low < SIDE)
        offsets = head * HEAD_DIM + low
        a, b = _norm_and_rotate(
            row + offsets, inside, q_weight, cosine, sine, low, eps, HEAD_DIM, NORMS, ROTATES
        )
        target = queries + token * (NUM_HEADS * HEAD_DIM) + offsets
        tl.store(target, a, mask=inside)
        tl.store(target + SIDE, b, mask=inside)
    else:
        slot = tl.load(slots + token).to(tl.int64) * (NUM_KV_HEADS * HEAD_DIM)
        if tile < Q_TILES + KV_TILES:
            head = (tile - Q_TILES) * TILE + tl.arange(0, TILE)[:, None]
            inside = (head < NUM_KV_HEADS) & (low < SIDE)
            offsets = head * HEAD_DIM + low
            source = row + NUM_HEADS * HEAD_DIM + offsets
            a, b = _norm_and_rotate(
                source, inside, k_weight, cosine, sine, low, eps, HEAD_DIM, NORMS, ROTATES
            )
            tl.store(keys + slot + offsets, a, mask=inside)
            tl.store(keys + slot + offsets + SIDE, b, mask=inside)
        else:
            head = (tile - Q_TILES - KV_TILES) * TILE + tl.arange(0, TILE)[:, None]
            inside = (head < NUM_KV_HEADS) & (low < SIDE)
            offsets = head * HEAD_DIM + low
            source = row + (NUM_HEADS + NUM_KV_HEADS) * HEAD_DIM + offsets
            tl.store(values + slot + offsets, tl.load(source, mask=inside), mask=inside)
            upper = tl.load(source + SIDE, mask=inside)
            tl.store(values + slot + offsets + SIDE, upper, mask=inside)


def rotate_and_store(
    qkv: Tensor,
    cache: tuple[Tensor, Tensor],
    positions: Tensor,
    slots: Tensor,
    tables: tuple[Tensor, Tensor],
    norms: tuple[Tensor, Tensor] | None,
    eps: float,
    *,
    rotates: bool,
) -> Tensor:
    """Returns the queries, [num_tokens, num_heads, head_dim]; writes the rest to the `cache`.

    `qkv` is [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim], `cache` a layer's keys and
    values, `tables` the cosines and sines of all positions, [max_position, head_dim / 2].
    """
    qkv = qkv.contiguous()
    keys, values = cache
    _, num_kv_heads, head_dim = keys.shape
    num_tokens = len(qkv)
    num_heads = qkv.shape[1] // head_dim - 2 * num_kv_heads
    queries = torch.empty((num_tokens, num_heads, head_dim), dtype=qkv.dtype, device=qkv.device)
    q_weight, k_weight = norms if norms is not None else (qkv, qkv)
    tile = min(triton.next_power_of_2(num_kv_heads), _MOST_HEADS)
    num_tiles = triton.cdiv(num_heads, tile) + 2 * triton.cdiv(num_kv_heads, tile)
    _rotate_and_store[(num_tokens, num_tiles)](
        qkv, queries, keys, values, positions, slots, *tables, q_weight, k_weight, eps,
        NUM_HEADS=num_heads, NUM_KV_HEADS=num_kv_heads, HEAD_DIM=head_dim,
        HALF=triton.next_power_of_2(head_dim // 2), TILE=tile,
        NORMS=norms is not None, ROTATES=rotates, num_warps=2,
    )  # fmt: skip
    return queries
