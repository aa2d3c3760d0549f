"""Asks for a key, where keys are set."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from mesh.errors import ErrorKind, MeshError

PROTECTED_PREFIXES = ("/v1/", "/api/")


class AuthMiddleware:
    """Lets a request to the API through if its bearer token is one of `keys`, or none is set."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on or raises MeshError (UNAUTHENTICATED)."""
        if self._keys and scope["type"] == "http" and scope["path"].startswith(PROTECTED_PREFIXES):
            self._check(Headers(scope=scope).get("authorization"))
        await self._app(scope, receive, send)

    def _check(self, authorization: str | None) -> None:
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise MeshError(
                ErrorKind.UNAUTHENTICATED,
                "this server asks for an API key: send the header 'Authorization: Bearer KEY'",
            )
        given = token.strip().encode("utf-8", "surrogateescape")
        # Every key is compared, in constant time, so that the time tells nothing.
        matches = [hmac.compare_digest(given, key) for key in self._keys]
        if not any(matches):
            raise MeshError(ErrorKind.UNAUTHENTICATED, "the API key is not known to this server")
