"""Draws tokens with torch's operations, on any device."""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Sequence as Rows

import numpy as np
import torch
from torch import Tensor

from inference.runner.staging import Fetch, to_device
from inference.sampling.sampling_params import SamplingParams
from inference.scheduler.scheduler_output import Row
from inference.structured_output.masks import Masks

_NEGATIVE_INFINITY = -math.inf
_WHOLE = 2.0**40
"""What a probability of 1 is counted as, where probabilities are summed."""


Draw = Callable[[Tensor, Tensor], Tensor]
"""The id of the largest sum of logit and noise in each row.

Takes logits [num_rows, vocab_size] in float32 and `noise_keys` [num_rows]; gives int64 ids.
"""


class TorchDrawer:
    """Draws all rows together where the logits are."""

    def __init__(self, draw: Draw | None = None) -> None:
        """`draw` adds the noise; None: torch's operations do."""
        self._draw = draw or draw_with_noise

    def draw(self, logits: Tensor, rows: Rows[Row], masks: Masks | None) -> Fetch:
        """As `inference.sampling.sampler.Drawer` has it."""
        if masks is not None:
            _constrain(logits, masks)
        highest, chosen = _highest(logits)
        drawing = [number for number, row in enumerate(rows) if not row.sequence.params.is_greedy]
        if drawing and len(drawing) == len(rows):
            chosen = self._draw(*_filtered(logits, rows))
        elif drawing:
            index = to_device(np.array(drawing), logits.device)
            kept = _filtered(logits[index], [rows[number] for number in drawing])
            drawn = self._draw(*kept)
            chosen = chosen.index_copy(0, index, drawn)
        return Fetch(torch.where(torch.isfinite(highest), chosen, -1))


def _highest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The largest value of each row, or NaN where there is one, and its place."""
    if logits.device.type != "cpu":
        return logits.max(dim=-1)
    # With vector instructions, where torch's search on the CPU has none.
    places = torch.from_numpy(logits.numpy().argmax(axis=-1))
    return logits.gather(1, places.unsqueeze(1)).squeeze(1), places


def _constrain(logits: Tensor, masks: Masks) -> None:
    rows = to_device(np.array(masks.rows), logits.device)
    words = to_device(masks.words, logits.device)
    bits = (words.unsqueeze(-1) >> torch.arange(32, device=logits.device)) & 1
    allowed = bits.flatten(1)[:, : logits.shape[1]] != 0
    logits[rows] = logits[rows].masked_fill(~allowed, _NEGATIVE_INFINITY)


def draw_with_noise(logits: Tensor, keys: Tensor) -> Tensor:
    """Implements `Draw`: the maximum of logits and Gumbel noise is a draw from their softmax."""
    return (logits + gumbel_noise(keys, logits.shape[1])).argmax(dim=-1)


def _filtered(logits: Tensor, rows: Rows[Row]) -> tuple[Tensor, Tensor]:
    """What is left of the logits, and the keys of the noise, to draw from."""
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


def _filter_top(logits: Tensor, params: Rows[SamplingParams]) -> Tensor:
    """Keeps the k likeliest, and of those the smallest set that holds top_p of the mass."""
    vocab_size = logits.shape[1]
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    top_k = _column(logits, [p.top_k or vocab_size for p in params])
    ranks = torch.arange(vocab_size, device=logits.device)
    ordered = ordered.masked_fill(ranks >= top_k, _NEGATIVE_INFINITY)
    top_p = _column(logits, [p.top_p for p in params])
    probabilities = ordered.softmax(dim=-1)
    # A token stays while those before it have not yet reached top_p: the first always does.
    # As integers: a GPU sums in another order for another number of rows.
    shares = (probabilities.double() * _WHOLE).long()
    before = shares.cumsum(dim=-1) - shares
    is_behind = before >= (top_p.double() * _WHOLE).long()
    ordered = ordered.masked_fill(is_behind & (top_p < 1.0), _NEGATIVE_INFINITY)
    return torch.full_like(logits, _NEGATIVE_INFINITY).scatter(-1, order, ordered)


def _column(logits: Tensor, values: list[float]) -> Tensor:
    return to_device(np.array(values, dtype=np.float32), logits.device).unsqueeze(1)


def noise_keys(seeds: Rows[int], positions: Rows[int], device: torch.device) -> Tensor:
    """[num_rows] in int64: what a row's noise is a function of, beside the token's id."""
    mixed = [
        _signed(_mix_int(_mix_int(seed) ^ position))
        for seed, position in zip(seeds, positions, strict=True)
    ]
    return to_device(np.array(mixed, dtype=np.int64), device)


def gumbel_noise(keys: Tensor, vocab_size: int) -> Tensor:
    """[num_rows, vocab_size] standard Gumbel noise, a function of key and id alone.

    Counter-based: splitmix64's mixer (Steele et al., 2014) of the two, in wrapping int64.
    """
    ids = torch.arange(vocab_size, device=keys.device).unsqueeze(0)
    bits = _mix(keys.unsqueeze(1) + ids * _signed(_GOLDEN))
    # 52 bits and a half are a double strictly in (0, 1): none is rounded to either end.
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
