"""The turns of embedding calls. For the thread that computes.

Calls take turns by input, so that a short call does not wait for a long one.
"""

from __future__ import annotations

import time
from collections import deque
from typing import NamedTuple

from inference.embedding.calls import EmbeddingCall
from inference.engine.errors import EngineError


class CallInput(NamedTuple):
    """An input of a call."""

    call: EmbeddingCall
    number: int


class CallTurns:
    """Live calls and their turns."""

    def __init__(self) -> None:
        self._waiting: deque[EmbeddingCall] = deque()
        """Calls with inputs that have not begun; the next turn is the first one's."""
        self._num_begun: dict[EmbeddingCall, int] = {}

    def __len__(self) -> int:
        return len(self._num_begun)

    @property
    def calls(self) -> list[EmbeddingCall]:
        return list(self._num_begun)

    def add(self, call: EmbeddingCall) -> None:
        """Append a call."""
        self._waiting.append(call)
        self._num_begun[call] = 0

    def next(self) -> CallInput | None:
        """The next input, which has not begun; None: all inputs have begun."""
        if not self._waiting:
            return None
        call = self._waiting[0]
        return CallInput(call, self._num_begun[call])

    def begin_next(self) -> CallInput:
        """Take the next input; the call's other inputs come after those of other calls."""
        call = self._waiting.popleft()
        number = self._num_begun[call]
        self._num_begun[call] = number + 1
        if number + 1 < len(call.inputs):
            self._waiting.append(call)
        return CallInput(call, number)

    def end(self, call: EmbeddingCall, error: EngineError | None) -> bool:
        """Forget a call; False if it had ended before."""
        if self._num_begun.pop(call, None) is None:
            return False
        # An error that the event loop has set, of a stuck step, is not replaced.
        call.error = call.error or error
        if call in self._waiting:
            self._waiting.remove(call)
        return True


def mark_begun(call: EmbeddingCall) -> None:
    """Record when the first input of a call began."""
    if call.begin is None:
        call.begin = time.monotonic()
