"""Rules for requests from browsers: accepted `Host` names, and accepted `Origin`s (CORS).

Any web page can make a browser send requests to a gateway on the same machine or inside the same
firewall. The `Origin` header names the page's origin; `<img>`, `<script>`, navigation and no-cors
requests have none, but fetch metadata (`Sec-Fetch-Site`) says whether another site made them. The
`Host` header shows whether the page's name was pointed at the gateway's address (DNS rebinding).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.http.errors import HttpError
from gateway.http.headers import RESPONSE_HEADERS, headers_of
from gateway.http.routes import PROTECTED_PREFIXES, UNWATCHED_PATHS
from gateway.middleware.hosts import ANY, AllowedHosts

PREFLIGHT_SECONDS = 600

_KEY = "gateway.cors"
_EXPOSED = ", ".join(RESPONSE_HEADERS)
_METHODS = "GET, POST, DELETE"
_HEADER_NAMES = re.compile(r"[\w!#$%&'*+.^`|~-]+(?:[ \t]*,[ \t]*[\w!#$%&'*+.^`|~-]+)*", re.ASCII)
"""A list of header names (RFC 9110, section 5.6.2)."""

_FOREIGN_SITES = frozenset({"cross-site", "same-site"})
"""Values of `Sec-Fetch-Site` for requests that a page of another origin made."""


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
        if origin is None:
            self._check_site(scope, headers)
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
            requested = headers.get("access-control-request-headers", "")
            await _preflight(requested)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check_site(self, scope: Scope, headers: Mapping[str, str]) -> None:
        """Raise HttpError (403) if a page of another origin made this request without an Origin.

        Such a request does not say which origin that is, so only `*` allows it. A link to one of
        the pages is followed, but not one to the API.
        """
        site = headers.get("sec-fetch-site", "").strip().lower()
        if site not in _FOREIGN_SITES or ANY in self._origins:
            return
        is_navigation = headers.get("sec-fetch-dest", "").strip().lower() == "document"
        if is_navigation and not scope["path"].startswith(PROTECTED_PREFIXES):
            return
        message = (
            "a request from another origin's page must have an origin of GATEWAY_CORS_ORIGINS, "
            f"given none, with sec-fetch-site {site!r}"
        )
        raise HttpError(403, message, code="origin_not_allowed")


def cors_headers(scope: Scope) -> Mapping[str, str]:
    """CORS headers of the response to this request, also of an error."""
    headers: Mapping[str, str] = scope.get(_KEY, {})
    return headers


def _same_origin(origin: str, host: str) -> bool:
    # The scheme is not compared: a proxy may terminate TLS.
    return origin.partition("://")[2].lower() == host.lower()


def _preflight(requested: str) -> Response:
    """The answer that allows the header names in `requested`, whatever they are.

    SDKs send additional headers (OpenAI's: `x-stainless-…`), and no header has an effect beyond
    what a client outside of a browser can send.
    """
    headers = {
        "access-control-allow-methods": _METHODS,
        "access-control-max-age": str(PREFLIGHT_SECONDS),
    }
    if _HEADER_NAMES.fullmatch(requested):
        headers["access-control-allow-headers"] = requested
    return Response(status_code=204, headers=headers)
