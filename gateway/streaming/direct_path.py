"""The way of deltas past the tasks of a streamed response, so that a delta wakes none of them."""

from __future__ import annotations

from collections.abc import Callable

from gateway.streaming.event_writer import EventWriter
from mesh.protocol.deltas import Delta


class DirectPath:
    """Connects the call of one generation with the writer of its response.

        call ── take(delta) ──▶ encode ──▶ write     otherwise: call ─▶ generators ─▶ writer's task

    The response sets the writer, and the endpoint, after what comes before the deltas, how they are
    encoded. Deltas go the other way until then, and while the client's connection takes nothing.
    """

    __slots__ = ("encode", "writer")

    def __init__(self) -> None:
        self.encode: Callable[[Delta], bytes] | None = None
        """Records a delta and encodes it; the result may be empty."""
        self.writer: EventWriter | None = None

    def take(self, delta: Delta) -> bool:
        """Write a delta that has just arrived, when all before it are written.

        False, and nothing is done, if it cannot be written now.
        """
        encode, writer = self.encode, self.writer
        if encode is None or writer is None or not writer.takes_now:
            return False
        frame = encode(delta)
        if frame:
            writer.write_now(frame)
        return True
