"""Speculative decoding by prompt lookup: text often repeats what stands before it.

Where a sequence's last tokens occurred before, what followed them then is drafted; one forward
pass computes all drafts, each position is sampled as it would have been without them, and drafts
stand as long as they are what was sampled. So the tokens are the same as without: a draft changes
how many come at once, never which.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from inference.scheduler.sequence import Sequence

LONGEST_MATCH = 4
"""Of the last tokens, looked for in what stands before them; a longer match is no better guess."""

MAX_PAUSE = 64
"""Steps without drafts after many misses in a row."""


class Row(NamedTuple):
    """A position to sample: behind a sequence's tokens and so many more.

    Those are drafts, or the one that the step before is still drawing.
    """

    sequence: Sequence
    num_ahead: int

    @property
    def position(self) -> int:
        """In the completion, counted from 0."""
        return self.sequence.num_completion_tokens + self.num_ahead

    @property
    def token_ids(self) -> NDArray[np.int64]:
        """All tokens before this position, where all are known."""
        ids = np.array(self.sequence.token_ids)  # a copy: a view would keep the array from growing
        if not self.num_ahead:
            return ids
        return np.concatenate([ids, self.sequence.draft_token_ids[: self.num_ahead]])


def rows_of(sequences: Rows[Sequence]) -> list[Row]:
    """The positions that a step samples for these: one, and one more for each draft."""
    return [
        Row(sequence, num_ahead)
        for sequence in sequences
        for num_ahead in range(1 + len(sequence.draft_token_ids))
    ]


class Drafter:
    """Proposes drafts, fewer where few of the last ones stood. Keeps its state in the sequence."""

    def __init__(self, num_tokens: int) -> None:
        """At most `num_tokens` drafts at once; 0 for none ever."""
        self.num_tokens = num_tokens

    def draft(self, sequence: Sequence, most: int) -> list[int]:
        """Guesses at the next tokens, at most `most`; none where nothing like it was there."""
        speculation = sequence.speculation
        if speculation.pause:
            speculation.pause -= 1
            return []
        length = speculation.length or self.num_tokens
        # The last token ends the sequence and is sampled, not drafted.
        room = sequence.max_tokens - sequence.num_completion_tokens - 1
        num_tokens = min(length, self.num_tokens, room, most)
        return lookup(sequence.token_ids, num_tokens) if num_tokens > 0 else []

    def wants(self, sequence: Sequence) -> bool:
        """Whether it would look for drafts in the sequence's next step."""
        return self.num_tokens > 0 and not sequence.speculation.pause

    def skip(self, sequence: Sequence) -> None:
        """Takes note of a step without drafts."""
        sequence.speculation.pause = max(sequence.speculation.pause - 1, 0)

    def learn(self, sequence: Sequence, num_drafted: int, num_accepted: int) -> None:
        """Takes note of how many drafts stood."""
        speculation = sequence.speculation
        speculation.num_drafted += num_drafted
        speculation.num_accepted += num_accepted
        if num_accepted == num_drafted:
            speculation.length = min(2 * num_drafted, self.num_tokens)
        else:
            speculation.length = num_accepted + 1
        if num_accepted:
            speculation.num_misses = 0
        else:
            speculation.pause = min(2**speculation.num_misses - 1, MAX_PAUSE)
            speculation.num_misses += 1


def lookup(token_ids: Rows[int], num_tokens: int) -> list[int]:
    """What followed where the longest run of the last tokens stood before, the latest time.

    Where that was less than `num_tokens` ago, the sequence is in a loop, and is guessed to go on.
    """
    ids = np.array(token_ids)  # a copy: a view would keep the array from growing
    ends = np.flatnonzero(ids[:-1] == ids[-1])  # of runs that are the same as the last tokens
    length = min(len(ends), 1)
    while 0 < length < LONGEST_MATCH:
        longer = ends[ends >= length]
        if not len(longer):
            break
        longer = longer[ids[longer - length] == ids[-1 - length]]
        if not len(longer):
            break
        ends, length = longer, length + 1
    if not length:
        return []
    begin = int(ends[-1]) + 1
    drafts: list[int] = np.resize(ids[begin : begin + num_tokens], num_tokens).tolist()
    return drafts
