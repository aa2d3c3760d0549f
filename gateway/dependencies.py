"""The objects that endpoints share."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from starlette.requests import Request

from gateway.http.drain import Drain
from gateway.keys.key_ring import KeyRing
from gateway.responses.kept import KeptResponses
from gateway.settings import GatewaySettings
from gateway.streaming.cancel_scope import CancelScope
from gateway.streaming.direct_path import DirectPath
from gateway.streaming.event_stream import EventStream
from gateway.streaming.resumable_streams import ResumableStreams
from gateway.streaming.sse import KEEP_ALIVE
from gateway.upstream.client import Orchestrator
from gateway.upstream.readiness import Readiness
from mesh.errors import MeshError


@dataclass(frozen=True, slots=True, kw_only=True)
class Dependencies:
    """The objects that endpoints use."""

    settings: GatewaySettings
    orchestrator: Orchestrator
    readiness: Readiness
    drain: Drain
    keys: KeyRing
    resumable_streams: ResumableStreams
    responses: KeptResponses

    def cancel_scope(self, request: Request) -> CancelScope:
        """A scope that is cancelled when the client disconnects; the body must have been read."""
        return CancelScope(request.receive, self.drain)

    def event_stream(
        self,
        frames: AsyncGenerator[bytes],
        error_frame: Callable[[MeshError], bytes],
        *,
        keep_alive_frame: bytes = KEEP_ALIVE,
        direct: DirectPath | None = None,
    ) -> EventStream:
        """A response that streams `frames`, and what `direct` takes past them."""
        keep_alive = self.settings.keep_alive_seconds
        return EventStream(frames, error_frame, self.drain, keep_alive, keep_alive_frame, direct)
