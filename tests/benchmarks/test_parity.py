"""What counts as equal, as a near tie and as different in the comparison with transformers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from benchmarks.parity import Completion, compare, total


def reference(ids: torch.Tensor, logits_to_keep: int) -> SimpleNamespace:
    """Logits at each position: 2 for the next number, a little less for the one after it."""
    logits = torch.zeros(1, ids.shape[1], 8)
    for position, number in enumerate(ids[0].tolist()):
        logits[0, position, number + 1] = 2.0
        logits[0, position, number + 2] = 2.0 - 5e-4
    return SimpleNamespace(logits=logits[:, -logits_to_keep:])


def test_tokens_are_compared_at_the_references_logits() -> None:
    """The second token is a near tie, the third one is wrong; later ones are judged by them."""
    logprob = float(torch.log_softmax(reference(torch.tensor([[1]]), 1).logits[0, 0], 0)[2])
    completion = Completion([2, 4, 1, 2], [logprob] * 4)
    found = compare(reference, [0, 1], completion)
    assert (found.num_tokens, found.num_equal, found.num_near_ties) == (4, 2, 1)
    assert found.largest_gap == pytest.approx(2.0)
    assert found.largest_logprob_difference == pytest.approx(2.0, abs=1e-5)
    assert found.sum_logprob_differences == pytest.approx(2.0 + 5e-4, abs=1e-5)
    exact = compare(reference, [0, 1], Completion([2, 3], [logprob] * 2))
    figures = total([found, exact])
    assert (figures["num_equal_prompts"], figures["num_equal"], figures["num_tokens"]) == (1, 4, 6)
