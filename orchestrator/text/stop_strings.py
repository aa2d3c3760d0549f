"""Cuts a stream of text at the first stop string; what might become one is held back."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Text goes in by `push`, and comes out once it cannot be part of a stop string.

    After a match nothing comes out any more. The concatenated output is the whole text up to
    the stop string that is complete first, of several the longest, however the text was cut.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        """`stop` may be empty; its strings may not."""
        assert all(stop), "an empty stop string would match everywhere"
        self._stop = tuple(stop)
        self._held = ""
        self.matched = False

    def push(self, text: str) -> str:
        """Takes more text, gives what can be shown."""
        if not self._stop:
            return text
        if self.matched:
            return ""
        text = self._held + text
        matches = [
            (start + len(stop), start) for stop in self._stop if (start := text.find(stop)) >= 0
        ]
        if matches:
            self.matched = True
            self._held = ""
            return text[: min(matches)[1]]
        held = max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def flush(self) -> str:
        """What was held back and turned out to be none; at the end of the text."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
