"""Whom a browser may speak for: rules on `Host`, and on `Origin` (CORS).

A page from anywhere can make a browser send requests to a gateway on the same machine or behind
the same firewall. Its `Origin` tells where it is from; if its own name was pointed at our
address (DNS rebinding), the `Host` tells.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import lru_cache
from urllib.parse import urlsplit

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.http.errors import HttpError
from gateway.http.headers import RESPONSE_HEADERS, headers_of
from gateway.http.routes import UNWATCHED_PATHS

ANY = "*"
PREFLIGHT_SECONDS = 600

_KEY = "gateway.cors"
_EXPOSED = ", ".join(RESPONSE_HEADERS)
_METHODS = "GET, POST, DELETE"
_HEADERS = (
    "authorization, content-type, accept, last-event-id, x-request-id, traceparent, tracestate"
)


class OriginMiddleware:
    """Refuses requests for other hosts, and ones that pages of other origins make."""

    def __init__(self, app: ASGIApp, hosts: Collection[str], origins: Collection[str]) -> None:
        """`hosts` may hold `*.example.org` or be empty for any; `origins` may hold `*`."""
        self._app = app
        self._hosts = frozenset(host for host in hosts if not host.startswith("*."))
        self._suffixes = tuple(host[1:] for host in hosts if host.startswith("*."))
        self._any_host = not hosts
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on, answers a preflight, or raises HttpError (403, 421)."""
        if scope["type"] != "http" or scope["path"] in UNWATCHED_PATHS:
            await self._app(scope, receive, send)
            return
        headers = headers_of(scope)
        host = headers.get("host", "")
        if not self._is_our_host(host):
            message = f"this server is not {host[:80]!r}; GATEWAY_ALLOWED_HOSTS says what it is"
            raise HttpError(421, message, code="misdirected_request")
        origin = headers.get("origin")
        if origin is None or _same_origin(origin, host):
            await self._app(scope, receive, send)
            return
        if not self._origins & {ANY, origin.lower()}:
            message = f"pages of {origin[:80]!r} may not use this server; see GATEWAY_CORS_ORIGINS"
            raise HttpError(403, message, code="origin_not_allowed")
        scope[_KEY] = {
            "access-control-allow-origin": ANY if ANY in self._origins else origin,
            "access-control-expose-headers": _EXPOSED,
            "vary": "origin",
        }
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            await _preflight()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_our_host(self, host: str) -> bool:
        name = _name_of(host)
        return self._any_host or name in self._hosts or name.endswith(self._suffixes)


def cors_headers(scope: Scope) -> Mapping[str, str]:
    """What an answer to this request must carry for the page that asked; also an error."""
    headers: Mapping[str, str] = scope.get(_KEY, {})
    return headers


@lru_cache(256)  # nearly all requests have the same one
def _name_of(host: str) -> str:
    """The name in a Host header, without its port; empty if the header is none."""
    if set(host) & set("/?#@\\"):
        return ""
    try:
        parts = urlsplit(f"//{host}")
        parts.port  # noqa: B018 - raises ValueError if it is none
    except ValueError:
        return ""
    return parts.hostname or ""


def _same_origin(origin: str, host: str) -> bool:
    # Not the scheme: a proxy in front may have ended TLS.
    return origin.partition("://")[2].lower() == host.lower()


def _preflight() -> Response:
    return Response(
        status_code=204,
        headers={
            "access-control-allow-methods": _METHODS,
            "access-control-allow-headers": _HEADERS,
            "access-control-max-age": str(PREFLIGHT_SECONDS),
        },
    )
