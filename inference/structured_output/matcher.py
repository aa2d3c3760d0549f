"""The state of a constraint's parser for one sequence."""

from __future__ import annotations

from collections import abc

from llguidance import LLMatcher

from inference.engine.errors import InvalidSamplingParams
from inference.structured_output.constraint import invalid_constraint
from mesh.protocol.constraints import OutputConstraint


class Matcher:
    """Tracks a completion and computes which tokens may follow. Not thread-safe.

    A resumed completion from another replica is replayed into a new matcher; a preempted sequence
    keeps its matcher.
    """

    __slots__ = ("_constraint", "_num_consumed", "raw")

    def __init__(self, raw: LLMatcher, constraint: OutputConstraint) -> None:
        """Takes ownership of `raw`."""
        self.raw = raw
        self._constraint = constraint
        self._num_consumed = 0

    def advance(self, completion: abc.Sequence[int]) -> None:
        """Consumes the tokens that were added to the completion since the last call."""
        new = completion[self._num_consumed :]
        if new:
            self.raw.consume_tokens(list(new))
            self._num_consumed = len(completion)

    @property
    def error(self) -> InvalidSamplingParams | None:
        """The parser's error: the constraint is too complex, or the completion violates it."""
        if not self.raw.is_error():
            return None
        return invalid_constraint(
            self._constraint, f"cannot be followed: {first_line(self.raw.get_error())}"
        )


def first_line(text: str) -> str:
    """The first line of a library's message, without the excerpt of the source."""
    return text.strip().partition("\n")[0].removesuffix(":")
