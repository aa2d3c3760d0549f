"""The sampler that uses torch's operations, on any device."""

from __future__ import annotations

import math
from collections import abc

import numpy as np
import torch
from torch import Tensor

from inference.runner.staging import Fetch, to_device
from inference.sampling.sampling_params import SamplingParams
from inference.scheduler.scheduler_output import Row
from inference.structured_output.masks import Masks

_NEGATIVE_INFINITY = -math.inf
_FIXED_POINT_ONE = 2.0**40
"""Probability 1 as a fixed-point integer; sums of integers do not depend on their order."""


GumbelArgmax = abc.Callable[[Tensor, Tensor], Tensor]
"""The token id with the largest sum of logit and Gumbel noise in each row.

Takes logits [num_rows, vocab_size] in float32 and `noise_keys` [num_rows]; returns int64 ids.
"""


class TorchSampler:
    """Samples all rows together, on the device of the logits."""

    def __init__(self, argmax: GumbelArgmax | None = None) -> None:
        """`argmax` is the Gumbel-max operation; None uses torch's operations."""
        self._gumbel_argmax = argmax or gumbel_argmax

    def sample(self, logits: Tensor, rows: abc.Sequence[Row], masks: Masks | None) -> Fetch:
        """Implements `inference.sampling.sampler.Sampler`."""
        if masks is not None:
            _constrain(logits, masks)
        highest, chosen = _highest(logits)
        random = [number for number, row in enumerate(rows) if not row.sequence.params.is_greedy]
        if random and len(random) == len(rows):
            chosen = self._gumbel_argmax(*_filtered(logits, rows))
        elif random:
            index = to_device(np.array(random), logits.device)
            kept = _filtered(logits[index], [rows[number] for number in random])
            chosen = chosen.index_copy(0, index, self._gumbel_argmax(*kept))
        return Fetch(torch.where(torch.isfinite(highest), chosen, -1))


def _highest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The largest value of each row and its token id; NaN if the row contains one."""
    if logits.device.type != "cpu":
        return logits.max(dim=-1)
    # numpy's argmax uses vector instructions on the CPU; torch's does not.
    ids = torch.from_numpy(logits.numpy().argmax(axis=-1))
    return logits.gather(1, ids.unsqueeze(1)).squeeze(1), ids


def _constrain(logits: Tensor, masks: Masks) -> None:
    """Sets the tokens that a mask forbids to minus infinity, in place."""
    rows = to_device(np.array(masks.rows), logits.device)
    bitmasks = to_device(masks.bitmasks, logits.device)
    bits = (bitmasks.unsqueeze(-1) >> torch.arange(32, device=logits.device)) & 1
    allowed = bits.flatten(1)[:, : logits.shape[1]] != 0
    logits[rows] = logits[rows].masked_fill(~allowed, _NEGATIVE_INFINITY)


def gumbel_argmax(logits: Tensor, keys: Tensor) -> Tensor:
    """Implements `GumbelArgmax`: the result is a sample from the softmax of the logits."""
    return (logits + gumbel_noise(keys, logits.shape[1])).argmax(dim=-1)


def _filtered(logits: Tensor, rows: abc.Sequence[Row]) -> tuple[Tensor, Tensor]:
    """The logits after temperature, `top_k`, `top_p` and `min_p`, and the rows' noise keys."""
    params = [row.sequence.params for row in rows]
    scaled = logits / _column(logits, [p.temperature for p in params])
    if any(p.top_k or p.top_p < 1.0 for p in params):
        scaled = _filter_top(scaled, params)
    if any(p.min_p > 0.0 for p in params):
        floors = _column(logits, [p.min_p for p in params]).log()
        scaled = scaled.masked_fill(
            scaled < scaled.max(dim=-1, keepdim=True).values + floors, _NEGATIVE_INFINITY
        )
    seeds, positions = zip(*((row.sequence.seed, row.position) for row in rows), strict=True)
    return scaled, noise_keys(seeds, positions, logits.device)


def _filter_top(logits: Tensor, params: abc.Sequence[SamplingParams]) -> Tensor:
    """Keeps the `top_k` most likely tokens, and of those the smallest set with mass `top_p`."""
    vocab_size = logits.shape[1]
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    top_k = _column(logits, [p.top_k or vocab_size for p in params])
    ranks = torch.arange(vocab_size, device=logits.device)
    ordered = ordered.masked_fill(ranks >= top_k, _NEGATIVE_INFINITY)
    top_p = _column(logits, [p.top_p for p in params])
    probabilities = ordered.softmax(dim=-1)
    # A token is kept while the tokens before it have less mass than top_p, so the first always is.
    # Fixed-point integers: a GPU's order of summation depends on the number of rows.
    shares = (probabilities.double() * _FIXED_POINT_ONE).long()
    mass_before = shares.cumsum(dim=-1) - shares
    # At least one: a smaller top_p would keep no token.
    is_outside = mass_before >= (top_p.double() * _FIXED_POINT_ONE).long().clamp(min=1)
    ordered = ordered.masked_fill(is_outside & (top_p < 1.0), _NEGATIVE_INFINITY)
    return torch.full_like(logits, _NEGATIVE_INFINITY).scatter(-1, order, ordered)


def _column(logits: Tensor, values: list[float]) -> Tensor:
    """[num_rows, 1] in float32 on the device of the logits."""
    return to_device(np.array(values, dtype=np.float32), logits.device).unsqueeze(1)


def noise_keys(
    seeds: abc.Sequence[int], positions: abc.Sequence[int], device: torch.device
) -> Tensor:
    """[num_rows] in int64; a row's noise is a function of its key and the token id."""
    mixed = [
        _signed(_mix_int(_mix_int(seed) ^ position))
        for seed, position in zip(seeds, positions, strict=True)
    ]
    return to_device(np.array(mixed, dtype=np.int64), device)


def gumbel_noise(keys: Tensor, vocab_size: int) -> Tensor:
    """[num_rows, vocab_size] standard Gumbel noise, a function of key and token id alone.

    A counter-based generator: splitmix64's mixer (Steele et al., 2014) of both, in wrapping int64.
    """
    ids = torch.arange(vocab_size, device=keys.device).unsqueeze(0)
    bits = _mix(keys.unsqueeze(1) + ids * _signed(_GOLDEN))
    # 52 bits plus a half give a double strictly between 0 and 1: no rounding to either end.
    uniform = (_shift(bits, 12).double() + 0.5) * 2.0**-52
    return -(-uniform.log()).log().float()


_GOLDEN = 0x9E3779B97F4A7C15
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_MASK = 2**64 - 1


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _mix_int(value: int) -> int:
    value = (value + _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * _FACTORS[0]) & _MASK
    value = ((value ^ (value >> 27)) * _FACTORS[1]) & _MASK
    return value ^ (value >> 31)


def _mix(value: Tensor) -> Tensor:
    value = (value ^ _shift(value, 30)) * _signed(_FACTORS[0])
    value = (value ^ _shift(value, 27)) * _signed(_FACTORS[1])
    return value ^ _shift(value, 31)


def _shift(value: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; torch's own keeps the sign."""
    return torch.bitwise_and(value >> bits, 2 ** (64 - bits) - 1)
