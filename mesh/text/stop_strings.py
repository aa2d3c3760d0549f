"""Ends a stream of text at the first stop string; holds back what may become one."""

from __future__ import annotations

from collections.abc import Sequence

from mesh.text.held_text import overlap


class StopStrings:
    """Takes text by `push` and returns it once it cannot be part of a stop string.

    After a match nothing is returned any more. The concatenated output is the text before the
    stop string that is complete first (the longest, if several are complete at the same
    character), however the text was split into pushes.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        """`stop` may be empty; its strings may not."""
        assert all(stop), "an empty stop string would match everywhere"
        self._stop = tuple(stop)
        self._held = ""
        self._num_exempt = 0
        """Characters at the beginning of `_held` at which no stop string may end."""
        self.matched = ""
        """The stop string that ended the text; empty while none has."""

    def skip(self, text: str) -> str:
        """Like `push`, of text in which no stop string ends. One may begin in it."""
        if not self._stop or self.matched:
            return self.push(text)
        text = self._held + text
        self._num_exempt = len(text)
        return self._release(text)

    def push(self, text: str) -> str:
        """Takes more text and returns what is certain now."""
        if not self._stop:
            return text
        if self.matched:
            return ""
        text = self._held + text
        matches = [
            (start + len(stop), start, stop)
            for stop in self._stop
            if (start := text.find(stop, max(0, self._num_exempt + 1 - len(stop)))) >= 0
        ]
        if matches:
            _, start, self.matched = min(matches)
            self._held = ""
            return text[:start]
        return self._release(text)

    def flush(self) -> str:
        """Returns what was held back. Called once, at the end of the text."""
        held, self._held = self._held, ""
        return held

    def _release(self, text: str) -> str:
        released = len(text) - max(overlap(text, stop) for stop in self._stop)
        self._held = text[released:]
        self._num_exempt = max(0, self._num_exempt - released)
        return text[:released]
