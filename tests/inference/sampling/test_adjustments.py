"""Compares bias, penalties and `min_tokens` with references in plain Python."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from inference.sampling.adjustments import adjust
from inference.scheduler.sequence import Sequence
from tests.inference.sampled import VOCAB_SIZE, make_logits, make_sequence, rows_of


def penalized(logits: list[float], sequence: Sequence) -> list[float]:
    """Penalties in plain Python."""
    params, values = sequence.params, list(logits)
    ids = list(sequence.token_ids)
    counts = Counter(ids[sequence.num_prompt_tokens :])
    for i in range(len(values)):
        if i in ids:
            factor = params.repetition_penalty
            values[i] = values[i] / factor if values[i] > 0 else values[i] * factor
        values[i] -= params.frequency_penalty * counts[i]
        values[i] -= params.presence_penalty * (counts[i] > 0)
    return values


@pytest.mark.parametrize(
    "params",
    [
        {"repetition_penalty": 1.8},
        {"repetition_penalty": 0.5},
        {"presence_penalty": 1.5},
        {"frequency_penalty": 0.9},
        {"repetition_penalty": 1.2, "presence_penalty": -0.5, "frequency_penalty": 1.1},
    ],
)
def test_penalties_equal_the_reference(params: dict[str, float]) -> None:
    """Repetition counts prompt and completion; the others count the completion alone."""
    logits = make_logits()
    prompt, completion = [1, 1, 2, 5], [5, 6, 6, 6, 8]
    rows = torch.tensor([logits, logits])
    plain = make_sequence(temperature=0.0)
    sequence = make_sequence(prompt, completion, temperature=0.0, **params)
    adjust(rows, rows_of([sequence, plain]))
    assert rows[0].tolist() == pytest.approx(penalized(logits, sequence), abs=1e-5)
    assert rows[1].tolist() == pytest.approx(logits)


def test_penalties_count_drafts() -> None:
    """A row after a draft token counts the draft as if it were accepted."""
    logits = make_logits()
    params = {"repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 1.1}
    drafted = make_sequence([1, 2], [5], **params)
    rows = torch.tensor([logits] * 3)
    adjust(rows, rows_of([drafted], (5, 9)))
    for number, completion in enumerate([[5], [5, 5], [5, 5, 9]]):
        expected = penalized(logits, make_sequence([1, 2], completion, **params))
        assert rows[number].tolist() == pytest.approx(expected, abs=1e-5)


def test_a_bias_affects_its_row_alone() -> None:
    """This holds if another row has a bias at the same token."""
    rows = torch.zeros(3, VOCAB_SIZE)
    sequences = [
        make_sequence(logit_bias={3: 100.0, 5: -2.5}),
        make_sequence(),
        make_sequence(logit_bias={3: 1.0}),
    ]
    adjust(rows, rows_of(sequences))
    assert rows.nonzero().tolist() == [[0, 3], [0, 5], [2, 3]]
    assert rows[rows != 0].tolist() == [100.0, -2.5, 1.0]


def test_no_stop_token_before_min_tokens() -> None:
    """Stop tokens get minus infinity, whatever their bias, up to `min_tokens` tokens."""
    params = {"min_tokens": 2, "stop_token_ids": frozenset([4, 7]), "logit_bias": {4: 100.0}}
    sequences = [make_sequence([0], [1] * count, **params) for count in (0, 1, 2)]
    rows = torch.zeros(3, VOCAB_SIZE)
    adjust(rows, rows_of(sequences))
    assert rows[:, 4].tolist() == [-math.inf, -math.inf, 100.0]
    assert rows[:, 7].tolist() == [-math.inf, -math.inf, 0.0]
    assert rows.count_nonzero() == 5


def test_rows_without_adjustments_do_not_change() -> None:
    """Their logits stay equal bit for bit."""
    rows = torch.tensor([make_logits()] * 2)
    adjust(rows, rows_of([make_sequence(), make_sequence(temperature=0.5, top_p=0.5)]))
    assert rows.tolist() == torch.tensor([make_logits()] * 2).tolist()
