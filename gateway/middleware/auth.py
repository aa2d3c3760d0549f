"""Authenticates API keys and enforces their limits."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.http.headers import API_KEY, headers_of
from gateway.http.routes import PROTECTED_PREFIXES
from gateway.keys.key_file import Key
from gateway.keys.key_ring import KeyRing
from gateway.keys.owner import set_owner
from mesh.context import annotate, current_request
from mesh.errors import ErrorKind, MeshError


class AuthMiddleware:
    """Accepts a request if its key is one of `keys`, or if no keys are configured.

    The key is a bearer token, or else in `x-api-key`, where Anthropic's clients send it.

    `open_paths` need no key; all other paths do, unknown ones included.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing, open_paths: Collection[str]) -> None:
        self._app = app
        self._keys = keys
        self._open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application; raises MeshError (UNAUTHENTICATED, or OVERLOADED at a limit)."""
        if scope["type"] != "http" or not self._keys.required or self._is_open(scope["path"]):
            await self._app(scope, receive, send)
            return
        key = self._check(_token(headers_of(scope)))
        set_owner(scope, key)
        request = current_request()
        if request is not None:
            request.key_name = key.name
            annotate(key_name=key.name)
        with self._keys.rate_limiter(key).request():
            await self._app(scope, receive, send)

    def _is_open(self, path: str) -> bool:
        return path in self._open_paths and not path.startswith(PROTECTED_PREFIXES)

    def _check(self, token: str) -> Key:
        if not token:
            raise MeshError(
                ErrorKind.UNAUTHENTICATED,
                "an API key is required: send the header 'Authorization: Bearer KEY' or "
                "'x-api-key: KEY'",
            )
        key = self._keys.find(token)
        if key is None:
            raise MeshError(ErrorKind.UNAUTHENTICATED, "the API key is invalid")
        return key


def _token(headers: Mapping[str, str]) -> str:
    """The API key that the request sends; empty if there is none."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return headers.get(API_KEY, "").strip()
