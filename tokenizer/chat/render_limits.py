"""Limits of rendering one chat template: time, output length, cancellation."""

from __future__ import annotations

import time

from mesh.errors import ErrorKind, MeshError, invalid


class RenderLimits:
    """Checked by the worker thread after each piece of output; another thread may call `cancel`."""

    def __init__(self, *, max_characters: int, seconds: float) -> None:
        """`seconds` is measured from the first check, so it excludes the wait for a thread."""
        self._max_characters = max_characters
        self._seconds = seconds
        self._started: float | None = None
        self._cancelled = False

    def cancel(self) -> None:
        """Makes the next check fail, because the client has cancelled the call."""
        self._cancelled = True

    def check(self, num_characters: int) -> None:
        """Raises MeshError if a limit is exceeded or the call is cancelled."""
        if self._cancelled:
            raise MeshError(ErrorKind.CANCELLED, "the client cancelled the call")
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
