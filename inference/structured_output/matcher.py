"""The state of a constraint's parser for one sequence."""

from __future__ import annotations

from collections import abc

from llguidance import LLMatcher

from inference.engine.errors import InvalidSamplingParams
from inference.structured_output.constraint import invalid_constraint
from mesh.protocol.constraints import OutputConstraint


class Matcher:
    """Tracks a completion and computes which tokens may follow. For one thread at a time.

    A resumed completion from another replica is replayed into a new matcher; a preempted sequence
    keeps its matcher.
    """

    __slots__ = ("_constraint", "_problem", "num_consumed", "raw")

    def __init__(self, raw: LLMatcher, constraint: OutputConstraint) -> None:
        """Takes ownership of `raw`."""
        self.raw = raw
        self.num_consumed = 0
        """Tokens of the completion that `fill` has been given."""
        self._constraint = constraint
        self._problem: str | None = None

    def fill(
        self,
        address: int,
        num_bytes: int,
        new_token_ids: list[int],
        draft_token_ids: abc.Sequence[int],
    ) -> None:
        """Consumes new tokens of the completion, and writes the mask of the token after them.

        It is written to the row of `num_bytes` at `address`, and the masks after each draft token
        to the rows after it. Rows after an invalid draft stay unchanged.
        """
        if new_token_ids:
            self.raw.consume_tokens(new_token_ids)
            self.num_consumed += len(new_token_ids)
        self.raw.unsafe_compute_mask_ptr(address, num_bytes)
        num_drafts = 0
        for token_id in draft_token_ids:
            if not self.raw.try_consume_tokens([token_id]):
                break
            num_drafts += 1
            self.raw.unsafe_compute_mask_ptr(address + num_drafts * num_bytes, num_bytes)
        if num_drafts:
            self.raw.rollback(num_drafts)

    def check(self) -> None:
        """Sets the error if no token may follow, not even an end. Computes a mask."""
        if not self.has_failed and not any(self.raw.compute_bitmask()):
            self.fail("no token may follow")

    def fail(self, problem: str) -> None:
        """Sets the error, without a call of the library, which may be busy in another thread."""
        self._problem = problem

    @property
    def has_failed(self) -> bool:
        """Whether there is an `error`."""
        return self._problem is not None or self.raw.is_error()

    @property
    def error(self) -> InvalidSamplingParams | None:
        """The error: the constraint is too complex, or the completion violates it."""
        problem = self._problem
        if problem is None and self.raw.is_error():
            problem = first_line(self.raw.get_error())
        if problem is None:
            return None
        return invalid_constraint(self._constraint, f"cannot be followed: {problem}")


def first_line(text: str) -> str:
    """The first line of a library's message, without the excerpt of the source."""
    return text.strip().partition("\n")[0].removesuffix(":")
