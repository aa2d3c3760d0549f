"""The Gumbel-max trick in one kernel: noise is generated where it is added to the logits.

The noise equals that of `inference.sampling.torch_sampler`: a function of a row's key and the
token id. Torch's operations make about twenty passes over eight bytes for each logit; this kernel
makes one over the logits. One program handles a block of a row's vocabulary.
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
def _gumbel_argmax(
    logits: tl.tensor,
    keys: tl.tensor,
    scores: tl.tensor,
    ids: tl.tensor,
    vocab_size: int,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    token = block * BLOCK + tl.arange(0, BLOCK)
    logit = tl.load(logits + row * vocab_size + token, mask=token < vocab_size, other=float("-inf"))
    # `>>` is an arithmetic shift: the masks clear the copies of the sign bit.
    bits = tl.load(keys + row) + token.to(tl.int64) * _GOLDEN
    bits = (bits ^ ((bits >> 30) & _MASK_34)) * _FIRST
    bits = (bits ^ ((bits >> 27) & _MASK_37)) * _SECOND
    bits = bits ^ ((bits >> 31) & _MASK_33)
    uniform = (((bits >> 12) & _MASK_52).to(tl.float64) + 0.5) * 2.220446049250313e-16
    noise = -tl.log(-tl.log(uniform))
    score = logit + noise.to(tl.float32)
    best = tl.argmax(score, axis=0)
    place = row * tl.num_programs(1) + block
    tl.store(scores + place, tl.max(score, axis=0))
    tl.store(ids + place, block * BLOCK + best)


def gumbel_argmax(logits: Tensor, keys: Tensor) -> Tensor:
    """Implements `inference.sampling.torch_sampler.GumbelArgmax` on a GPU."""
    logits = logits.contiguous()
    num_rows, vocab_size = logits.shape
    num_blocks = triton.cdiv(vocab_size, _BLOCK)
    scores = torch.empty((num_rows, num_blocks), dtype=torch.float32, device=logits.device)
    ids = torch.empty((num_rows, num_blocks), dtype=torch.int64, device=logits.device)
    _gumbel_argmax[(num_rows, num_blocks)](
        logits, keys, scores, ids, vocab_size, BLOCK=_BLOCK, num_warps=8
    )
    return ids.gather(1, scores.argmax(dim=-1, keepdim=True)).squeeze(1)
