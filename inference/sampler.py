"""Draws the next token of each row, in one batch on the device.

A seeded row draws the same token whatever else is in the batch: its randomness is a function of
seed, position and token id alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from inference.batch import SampledToken
from inference.logprobs import token_logprobs
from inference.masks import Masks
from inference.sampling_params import SamplingParams
from inference.sequence import Sequence
from inference.speculation import Row, rows_of

_NEGATIVE_INFINITY = -math.inf


def sample(
    logits: Tensor, sequences: Rows[Sequence], masks: Masks | None = None
) -> list[SampledToken]:
    """One token for each row of `logits` [num_rows, vocab_size], float32; changes `logits`.

    A sequence has a row, and one more for each of its drafts; each is sampled as if the drafts
    before it stood. `masks` say what the constrained rows may draw. A row without finite logits
    gets id -1.
    """
    rows = rows_of(sequences)
    # Log probabilities are of the model's own distribution, before anything is filtered.
    wanted = any(sequence.params.num_logprobs is not None for sequence in sequences)
    raw = torch.log_softmax(logits, dim=-1) if wanted else None
    _bias(logits, rows)
    _penalize(logits, rows)
    if masks is not None:
        _constrain(logits, masks)
    highest, chosen = _highest(logits)
    drawing = [number for number, row in enumerate(rows) if not row.sequence.params.is_greedy]
    if drawing:
        index = torch.tensor(drawing, device=logits.device)
        drawn = _draw(logits[index], [rows[number] for number in drawing])
        chosen = chosen.index_copy(0, index, drawn)
    chosen = torch.where(torch.isfinite(highest), chosen, -1)
    token_ids = chosen.tolist()  # the one wait for the device in a step
    if raw is None:
        return [SampledToken(token_id) for token_id in token_ids]
    logprobs = token_logprobs(raw, token_ids, [row.sequence.params.num_logprobs for row in rows])
    return [SampledToken(*both) for both in zip(token_ids, logprobs, strict=True)]


def _highest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The largest value of each row, or NaN where there is one, and its place."""
    if logits.device.type != "cpu":
        return logits.max(dim=-1)
    # With vector instructions, where torch's search on the CPU has none.
    places = torch.from_numpy(logits.numpy().argmax(axis=-1))
    return logits.gather(1, places.unsqueeze(1)).squeeze(1), places


def _bias(logits: Tensor, rows: Rows[Row]) -> None:
    for number, row in enumerate(rows):
        sequence, params = row.sequence, row.sequence.params
        if params.logit_bias:
            ids = torch.tensor(list(params.logit_bias), device=logits.device)
            values = torch.tensor(list(params.logit_bias.values()), device=logits.device)
            logits[number, ids] += values
        if sequence.matcher is not None:
            continue  # the mask sees to it, and knows where nothing but the end is left
        if row.position < params.min_tokens and sequence.stop_token_ids:
            ids = torch.tensor(list(sequence.stop_token_ids), device=logits.device)
            logits[number, ids] = _NEGATIVE_INFINITY


def _penalize(logits: Tensor, rows: Rows[Row]) -> None:
    vocab_size = logits.shape[1]
    for number, row in enumerate(rows):
        params = row.sequence.params
        if not params.has_penalties:
            continue
        ids = torch.tensor(row.token_ids, device=logits.device)
        if params.repetition_penalty != 1.0:
            seen = torch.unique(ids)
            values = logits[number, seen]
            logits[number, seen] = torch.where(
                values > 0, values / params.repetition_penalty, values * params.repetition_penalty
            )
        counts = torch.bincount(ids[row.sequence.num_prompt_tokens :], minlength=vocab_size)
        logits[number] -= params.frequency_penalty * counts
        logits[number] -= params.presence_penalty * (counts > 0)


def _constrain(logits: Tensor, masks: Masks) -> None:
    rows = torch.tensor(masks.rows, device=logits.device)
    words = torch.from_numpy(masks.words).to(logits.device)
    bits = (words.unsqueeze(-1) >> torch.arange(32, device=logits.device)) & 1
    allowed = bits.flatten(1)[:, : logits.shape[1]] != 0
    logits[rows] = logits[rows].masked_fill(~allowed, _NEGATIVE_INFINITY)


def _draw(logits: Tensor, rows: Rows[Row]) -> Tensor:
    """[num_rows] ids: the maximum of logits and Gumbel noise is a draw from their softmax."""
    params = [row.sequence.params for row in rows]
    scaled = logits / _column(logits, [p.temperature for p in params])
    if any(p.top_k or p.top_p < 1.0 for p in params):
        scaled = _filter_top(scaled, params)
    if any(p.min_p > 0.0 for p in params):
        floors = _column(logits, [p.min_p for p in params]).log()
        scaled = scaled.masked_fill(
            scaled < scaled.max(dim=-1, keepdim=True).values + floors, _NEGATIVE_INFINITY
        )
    noise = gumbel_noise(
        [row.sequence.seed for row in rows],
        [row.position for row in rows],
        logits.shape[1],
        logits.device,
    )
    return (scaled + noise).argmax(dim=-1)


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
    before = probabilities.cumsum(dim=-1) - probabilities
    ordered = ordered.masked_fill((before >= top_p) & (top_p < 1.0), _NEGATIVE_INFINITY)
    return torch.full_like(logits, _NEGATIVE_INFINITY).scatter(-1, order, ordered)


def _column(logits: Tensor, values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=logits.dtype, device=logits.device).unsqueeze(1)


def gumbel_noise(
    seeds: Rows[int], positions: Rows[int], vocab_size: int, device: torch.device
) -> Tensor:
    """[num_rows, vocab_size] standard Gumbel noise, a function of seed, position and id alone.

    Counter-based: splitmix64's mixer (Steele et al., 2014) of the three, in wrapping int64.
    """
    keys = torch.tensor(
        [
            _signed(_mix_int(_mix_int(seed) ^ position))
            for seed, position in zip(seeds, positions, strict=True)
        ],
        device=device,
    ).unsqueeze(1)
    ids = torch.arange(vocab_size, device=device).unsqueeze(0)
    bits = _mix(keys + ids * _signed(_GOLDEN))
    # 53 bits make a double in (0, 1), so that no draw is impossible in the far tail.
    uniform = ((_shift(bits, 11)).double() + 0.5) * 2.0**-53
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
