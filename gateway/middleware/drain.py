"""Refuses new requests while the process drains, and counts running ones."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.http.drain import Drain
from gateway.http.routes import UNWATCHED_PATHS


class DrainMiddleware:
    """Applies the drain to all paths except probes and metrics."""

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self._app = app
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application, or raise MeshError (UNAVAILABLE)."""
        if scope["type"] != "http" or scope["path"] in UNWATCHED_PATHS:
            await self._app(scope, receive, send)
            return
        with self._drain:
            await self._app(scope, receive, send)
