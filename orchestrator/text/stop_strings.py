"""Ends a stream of text at the first stop string; holds back what may become one."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.text.held_text import overlap


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
        self.matched = False

    def push(self, text: str) -> str:
        """Takes more text and returns what is certain now."""
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
        held = max(overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def flush(self) -> str:
        """Returns what was held back. Called once, at the end of the text."""
        held, self._held = self._held, ""
        return held
