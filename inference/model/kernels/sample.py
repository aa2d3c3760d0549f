"""Draws from logits by adding Gumbel noise, which is made where it is added.

The noise is that of `inference.sampling.torch_sampler`: a function of a row's key and the token's
id. With
torch's operations it is some twenty passes over eight bytes for each logit; here it is one over
the logits. A program takes a piece of a row's vocabulary.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 2048

_GOLDEN = tl.constexpr(0x9E3779B97F4A7C15 - 2**64)
_FIRST = tl.constexpr(0xBF58476D1CE4E5B9 - 2**64)
_SECOND = tl.constexpr(0x94D049BB133111EB - 2**64)
_MASK_34 = tl.constexpr(2**34 - 1)
_MASK_37 = tl.constexpr(2**37 - 1)
_MASK_33 = tl.constexpr(2**33 - 1)
_MASK_52 = tl.constexpr(2**52 - 1)


@triton.jit
def _draw(
    logits: tl.tensor,
    keys: tl.tensor,
    scores: tl.tensor,
    ids: tl.tensor,
    vocab_size: int,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    piece = tl.program_id(1)
    token = piece * BLOCK + tl.arange(0, BLOCK)
    logit = tl.load(logits + row * vocab_size + token, mask=token < vocab_size, other=float("-inf"))
    # A shift to the right keeps the sign: what comes in from the left is masked away.
    bits = tl.load(keys + row) + token.to(tl.int64) * _GOLDEN
    bits = (bits ^ ((bits >> 30) & _MASK_34)) * _FIRST
    bits = (bits ^ ((bits >> 27) & _MASK_37)) * _SECOND
    bits = bits ^ ((bits >> 31) & _MASK_33)
    uniform = (((bits >> 12) & _MASK_52).to(tl.float64) + 0.5) * 2.220446049250313e-16
    noise = -tl.log(-tl.log(uniform))
    score = logit + noise.to(tl.float32)
    best = tl.argmax(score, axis=0)
    place = row * tl.num_programs(1) + piece
    tl.store(scores + place, tl.max(score, axis=0))
    tl.store(ids + place, piece * BLOCK + best)


def draw(logits: Tensor, keys: Tensor) -> Tensor:
    """[num_rows] ids in int64, of `logits` [num_rows, vocab_size] in float32 and int64 `keys`."""
    logits = logits.contiguous()
    num_rows, vocab_size = logits.shape
    num_pieces = triton.cdiv(vocab_size, _BLOCK)
    scores = torch.empty((num_rows, num_pieces), dtype=torch.float32, device=logits.device)
    ids = torch.empty((num_rows, num_pieces), dtype=torch.int64, device=logits.device)
    _draw[(num_rows, num_pieces)](logits, keys, scores, ids, vocab_size, BLOCK=_BLOCK, num_warps=8)
    return ids.gather(1, scores.argmax(dim=-1, keepdim=True)).squeeze(1)
