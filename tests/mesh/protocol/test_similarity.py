"""Texts compared by their embeddings."""

from __future__ import annotations

import math

import pytest

from mesh.protocol.similarity import Similarities


def test_cosines_of_vectors_in_batches() -> None:
    """One with each of the others, or pairs; a vector of zeros has 0."""
    east, north, both, zero = [2.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]
    one = Similarities(has_one_first=True)
    assert one.add([east]) == []
    assert one.add([east, north]) == [1.0, 0.0]
    assert one.add([both, zero, [-3.0, 0.0]]) == [pytest.approx(math.sqrt(0.5)), 0.0, -1.0]
    pairs = Similarities(has_one_first=False)
    assert pairs.add([east, north, both]) == [0.0]
    assert pairs.add([both]) == [pytest.approx(1.0)]
