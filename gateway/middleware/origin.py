"""Rules for requests from browsers: accepted `Host` names, and accepted `Origin`s (CORS).

Any web page can make a browser send requests to a gateway on the same machine or inside the same
firewall. The `Origin` header names the page's site; the `Host` header shows whether the page's
name was pointed at the gateway's address (DNS rebinding).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.http.errors import HttpError
from gateway.http.headers import RESPONSE_HEADERS, headers_of
from gateway.http.routes import UNWATCHED_PATHS
from gateway.middleware.hosts import ANY, AllowedHosts

PREFLIGHT_SECONDS = 600

_KEY = "gateway.cors"
_EXPOSED = ", ".join(RESPONSE_HEADERS)
_METHODS = "GET, POST, DELETE"
_HEADERS = (
    "authorization, content-type, accept, last-event-id, x-request-id, traceparent, tracestate"
)


class OriginMiddleware:
    """Refuses requests with a foreign Host header, and those of pages from foreign origins."""

    def __init__(self, app: ASGIApp, hosts: Collection[str], origins: Collection[str]) -> None:
        """`hosts` as in `AllowedHosts`; `origins` may hold `*`."""
        self._app = app
        self._hosts = AllowedHosts(hosts)
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application, answer a preflight, or raise HttpError (403, 421)."""
        if scope["type"] != "http" or scope["path"] in UNWATCHED_PATHS:
            await self._app(scope, receive, send)
            return
        headers = headers_of(scope)
        host = headers.get("host")
        if host not in self._hosts:
            message = f"host {(host or '')[:80]!r} must be one of GATEWAY_ALLOWED_HOSTS"
            raise HttpError(421, message, code="misdirected_request")
        origin = headers.get("origin")
        if origin is None or _same_origin(origin, host or ""):
            await self._app(scope, receive, send)
            return
        if not self._origins & {ANY, origin.lower()}:
            message = f"origin {origin[:80]!r} must be one of GATEWAY_CORS_ORIGINS"
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


def cors_headers(scope: Scope) -> Mapping[str, str]:
    """CORS headers of the response to this request, also of an error."""
    headers: Mapping[str, str] = scope.get(_KEY, {})
    return headers


def _same_origin(origin: str, host: str) -> bool:
    # The scheme is not compared: a proxy may terminate TLS.
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
