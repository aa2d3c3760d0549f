"""Which requests get the same tokens whatever else the engine computes beside them.

On a GPU sums of floats are made in another order for another number of rows, unless kernels are
used that keep to one, which is slower where there are many rows. A step is computed so when a
sequence of its asks for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # settings need no more of it
    from inference.scheduler.sequence import Sequence


class Invariance(StrEnum):
    """Whose requests."""

    SEEDED = "seeded"
    """Those with a seed, which is a wish to see the same again."""
    ALL = "all"
    NONE = "none"

    @property
    def kinds(self) -> tuple[bool, ...]:
        """Of steps that there will be: those that are not invariant, those that are."""
        return {self.SEEDED: (False, True), self.ALL: (True,), self.NONE: (False,)}[self]

    def holds_for(self, sequences: Iterable[Sequence]) -> bool:
        """Whether a step with these is to be invariant."""
        if self is Invariance.SEEDED:
            return any(sequence.is_seeded for sequence in sequences)
        return self is Invariance.ALL
