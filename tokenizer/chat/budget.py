"""What one rendering may cost: time, characters, and whether anyone still wants it."""

from __future__ import annotations

import time

from mesh.errors import ErrorKind, MeshError, invalid


class Budget:
    """Checked by the worker between two pieces of output; `cancel` comes from another thread."""

    def __init__(self, *, max_characters: int, seconds: float) -> None:
        """The time runs from the first check: waiting for a thread does not count."""
        self._max_characters = max_characters
        self._seconds = seconds
        self._started: float | None = None
        self._cancelled = False

    def cancel(self) -> None:
        """Makes the next check fail: the caller has gone."""
        self._cancelled = True

    def check(self, num_characters: int) -> None:
        """Raises MeshError once anything is used up."""
        if self._cancelled:
            raise MeshError(ErrorKind.CANCELLED, "the caller has gone")
        if num_characters > self._max_characters:
            raise invalid(
                "messages",
                f"messages must render to at most {self._max_characters} characters, "
                f"given {num_characters} or more",
            )
        now = time.monotonic()
        if self._started is None:
            self._started = now
        if now - self._started > self._seconds:
            raise invalid(
                "messages", f"messages must render within {self._seconds:g} s, took longer"
            )
