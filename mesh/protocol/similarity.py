"""Texts compared by their embeddings."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from operator import mul


class Similarities:
    """The cosines of the angles between vectors that arrive in batches."""

    def __init__(self, *, has_one_first: bool) -> None:
        """`has_one_first`: the first vector and each of the others; else two at a time."""
        self._is_pairs = not has_one_first
        self._left: array[float] | None = None

    def add(self, vectors: Sequence[Sequence[float]]) -> list[float]:
        """Take the next vectors; returns the cosines that they complete, each from -1 to 1."""
        values: list[float] = []
        for vector in vectors:
            # An array: of a batch only this vector is kept, at 4 bytes a number.
            numbers = array("f", vector)
            if self._left is None:
                self._left = numbers
                continue
            values.append(cosine(self._left, numbers))
            if self._is_pairs:
                self._left = None
        return values


def cosine(left: Sequence[float], right: Sequence[float]) -> float:
    """The cosine of the angle between two vectors; 0 if one of them is zero."""
    lengths = math.sqrt(_product(left, left) * _product(right, right))
    if not lengths:
        return 0.0
    return min(1.0, max(-1.0, _product(left, right) / lengths))


def _product(left: Sequence[float], right: Sequence[float]) -> float:
    # Python 3.11 has no math.sumprod.
    product: float = sum(map(mul, left, right))
    return product
