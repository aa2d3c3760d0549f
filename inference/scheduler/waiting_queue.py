"""The sequences that have not started, in order of arrival, and which of them may start next."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator

from inference.scheduler.sequence import Sequence


class WaitingQueue:
    """In order of priority, and first come first served within one, except that a short sequence
    may start before a longer one.

    Sequences that start before an earlier one have together at most as many tokens as that one,
    so they delay it by about its own time at most. A preempted sequence is not overtaken: its
    client is reading already.
    """

    def __init__(self) -> None:
        # An ordered dict serves as a deque with removal from the middle in O(1), for aborts.
        self._sequences: OrderedDict[str, Sequence] = OrderedDict()
        self.num_tokens = 0
        """Tokens of all sequences together, which do not change while they wait."""

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        """All sequences, in order."""
        return iter(self._sequences.values())

    def get(self, request_id: str) -> Sequence | None:
        return self._sequences.get(request_id)

    def append(self, sequence: Sequence) -> None:
        """Add a sequence after all others of its priority, and before those of a later one."""
        queue = self._sequences
        last = next(reversed(queue.values()), None)
        queue[sequence.request_id] = sequence
        self.num_tokens += sequence.num_tokens
        if last is None or last.priority <= sequence.priority:
            return
        later = [each for each in queue.values() if each.priority > sequence.priority]
        for each in later:
            if not each.num_preemptions:
                queue.move_to_end(each.request_id)

    def append_left(self, sequence: Sequence) -> None:
        """Add a preempted sequence before all others."""
        self._sequences[sequence.request_id] = sequence
        self._sequences.move_to_end(sequence.request_id, last=False)
        self.num_tokens += sequence.num_tokens

    def remove(self, sequence: Sequence) -> None:
        """Remove a sequence that has ended."""
        del self._sequences[sequence.request_id]
        self.num_tokens -= sequence.num_tokens

    def may_start(self, sequence: Sequence) -> bool:
        """Whether a sequence is one of `startable`."""
        return any(each is sequence for each in self.startable())

    def start(self, sequence: Sequence) -> None:
        """Remove one of `startable`, and count its tokens for those before it."""
        for earlier in self:
            if earlier is sequence:
                break
            earlier.num_overtaken_tokens += sequence.num_tokens
        self.remove(sequence)

    def startable(self) -> Iterator[Sequence]:
        """The first sequence, and those that may start before all sequences ahead of them."""
        most: float = math.inf
        for sequence in self:
            if sequence.num_tokens <= most:
                yield sequence
            if sequence.num_preemptions:
                return
            most = min(most, sequence.num_tokens - sequence.num_overtaken_tokens)
            if most <= 0:
                return
