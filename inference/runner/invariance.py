"""Batch invariance: requests whose tokens do not depend on other requests in the batch.

GPU kernels usually sum floats in an order that depends on the number of rows. Batch-invariant
kernels use a fixed order, and are slower for many rows. A step uses them if one of its sequences
requires it.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inference.scheduler.sequence import Sequence


class Invariance(StrEnum):
    """The requests that are batch-invariant."""

    SEEDED = "seeded"
    """Requests with a seed, because their clients expect reproducible tokens."""
    ALL = "all"
    NONE = "none"

    @property
    def kinds(self) -> tuple[bool, ...]:
        """The kinds of steps that may occur: False for usual kernels, True for invariant ones."""
        return {self.SEEDED: (False, True), self.ALL: (True,), self.NONE: (False,)}[self]

    def holds_for(self, sequences: Iterable[Sequence]) -> bool:
        """Whether a step with these sequences uses batch-invariant kernels."""
        if self is Invariance.SEEDED:
            return any(sequence.is_seeded for sequence in sequences)
        return self is Invariance.ALL
