"""A sequence's place in the form that its text must have."""

from __future__ import annotations

from collections.abc import Sequence as Ids

from llguidance import LLMatcher

from inference.engine.errors import InvalidSamplingParams
from inference.structured_output.constraint import invalid_constraint
from mesh.protocol.constraints import OutputConstraint


class Matcher:
    """Knows which tokens may come next. One thread at a time.

    It follows the sequence's completion, wherever that came from: what another replica has
    generated is replayed, and a preempted sequence keeps its matcher.
    """

    __slots__ = ("_constraint", "_num_consumed", "raw")

    def __init__(self, raw: LLMatcher, constraint: OutputConstraint) -> None:
        """`raw` is the matcher's own from now on."""
        self.raw = raw
        self._constraint = constraint
        self._num_consumed = 0

    def advance(self, completion: Ids[int]) -> None:
        """Takes what the completion has grown by since the last call."""
        new = completion[self._num_consumed :]
        if new:
            self.raw.consume_tokens(list(new))
            self._num_consumed = len(completion)

    @property
    def error(self) -> InvalidSamplingParams | None:
        """Why it cannot go on: the form is too complex, or the completion does not keep to it."""
        if not self.raw.is_error():
            return None
        return invalid_constraint(
            self._constraint, f"cannot be followed: {first_line(self.raw.get_error())}"
        )


def first_line(text: str) -> str:
    """A library's message without its picture of the place."""
    return text.strip().partition("\n")[0].removesuffix(":")
