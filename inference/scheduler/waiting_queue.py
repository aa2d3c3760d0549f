"""The sequences that have not started, in their order, and which of them may start next."""

from __future__ import annotations

import math
from bisect import insort
from collections import OrderedDict
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

from inference.scheduler.sequence import Sequence

_Order = tuple[int, int]
"""Priority and turn."""


LARGE_REQUEST = 8
"""Waiting sequences from which on the first one of a request is treated as its others."""


class _Request(NamedTuple):
    """A request with waiting sequences."""

    first: Sequence
    """Of those that waited together; it may have started."""
    last_turn: int
    num_waiting: int


class WaitingQueue:
    """In order of priority. Within one the requests take turns, each with one sequence, so that a
    request of many sequences delays another one by a sequence only; requests of one sequence are
    first come, first served. A short sequence may start before a longer one.

    Sequences that start before an earlier one have together at most as many tokens as that one,
    so they delay it by about its own time at most. A preempted sequence is not overtaken: its
    client is reading already.
    """

    def __init__(self) -> None:
        self._sequences: dict[str, Sequence] = {}
        # Ordered dicts serve as deques with removal from the middle in O(1), for aborts.
        self._preempted: OrderedDict[str, Sequence] = OrderedDict()
        self._by_order: dict[_Order, OrderedDict[str, Sequence]] = {}
        self._orders: list[_Order] = []
        """Sorted keys of `_by_order`."""
        self._turn = 0
        """Latest turn of a sequence that has started."""
        self._requests: dict[str, _Request] = {}
        self.num_tokens = 0
        """Tokens of all sequences together, which do not change while they wait."""
        self.num_further = 0
        """Sequences that are not the first of their request, and all of large ones."""

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        """All sequences, in order."""
        ordered = (self._by_order[order].values() for order in self._orders)
        return chain(self._preempted.values(), *ordered)

    def get(self, request_id: str) -> Sequence | None:
        return self._sequences.get(request_id)

    def append(self, sequence: Sequence) -> None:
        """Add a sequence after all others of its priority and turn."""
        self._take_turn(sequence)
        order = sequence.priority, sequence.turn
        if order not in self._by_order:
            self._by_order[order] = OrderedDict()
            insort(self._orders, order)
        self._by_order[order][sequence.request_id] = sequence
        self._add(sequence)

    def append_left(self, sequence: Sequence) -> None:
        """Add a preempted sequence before all others."""
        self._preempted[sequence.request_id] = sequence
        self._preempted.move_to_end(sequence.request_id, last=False)
        self._add(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Remove a sequence that has ended."""
        del self._sequences[sequence.request_id]
        self.num_tokens -= sequence.num_tokens
        self.num_further -= sequence.is_further
        if self._preempted.pop(sequence.request_id, None) is not None:
            return
        order = sequence.priority, sequence.turn
        same = self._by_order[order]
        del same[sequence.request_id]
        if not same:
            del self._by_order[order]
            self._orders.remove(order)
        request = self._requests[sequence.group]
        if request.num_waiting == 1:
            del self._requests[sequence.group]
        else:
            self._requests[sequence.group] = request._replace(num_waiting=request.num_waiting - 1)

    def may_start(self, sequence: Sequence, *, firsts_only: bool = False) -> bool:
        """Whether a sequence is one of `startable`."""
        return any(each is sequence for each in self.startable(firsts_only=firsts_only))

    def start(self, sequence: Sequence) -> None:
        """Remove one of `startable`, and count its tokens for those before it."""
        for earlier in self:
            if earlier is sequence:
                break
            earlier.num_overtaken_tokens += sequence.num_tokens
        self._turn = max(self._turn, sequence.turn)
        self.remove(sequence)

    def startable(self, *, firsts_only: bool = False) -> Iterator[Sequence]:
        """The first sequence, and those that may start before all sequences ahead of them.

        `firsts_only`: as if further sequences of requests did not wait.
        """
        most: float = math.inf
        for sequence in self:
            if firsts_only and sequence.is_further:
                continue
            if sequence.num_tokens <= most:
                yield sequence
            if sequence.num_preemptions:
                return
            most = min(most, sequence.num_tokens - sequence.num_overtaken_tokens)
            if most <= 0:
                return

    def _take_turn(self, sequence: Sequence) -> None:
        """Give a sequence the turn after those of its request that wait, or else the next one."""
        first, turn, number = self._requests.get(sequence.group, (sequence, self._turn, 0))
        sequence.turn = max(turn, self._turn) + 1
        sequence.is_further = number > 0
        self._requests[sequence.group] = _Request(first, sequence.turn, number + 1)
        has_started = first.num_preemptions or self.get(first.request_id) is not first
        if number + 1 == LARGE_REQUEST and not first.is_further and not has_started:
            first.is_further = True
            self.num_further += 1

    def _add(self, sequence: Sequence) -> None:
        self._sequences[sequence.request_id] = sequence
        self.num_tokens += sequence.num_tokens
        self.num_further += sequence.is_further
