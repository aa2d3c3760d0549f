"""Refuses new requests while the process drains, and counts those that run."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.http.drain import Drain
from gateway.http.routes import UNWATCHED_PATHS


class DrainMiddleware:
    """Everything but the operators' own paths runs under the drain."""

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self._app = app
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on or raises MeshError (UNAVAILABLE)."""
        if scope["type"] != "http" or scope["path"] in UNWATCHED_PATHS:
            await self._app(scope, receive, send)
            return
        with self._drain:
            await self._app(scope, receive, send)
