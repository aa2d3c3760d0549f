"""Routes with a path template for metrics and a description for OpenAPI."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass

from pydantic import BaseModel
from starlette.requests import Request
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.http.errors import HttpError
from gateway.schemas.common import ErrorAnswer

UNMATCHED = "unmatched"
"""Metric label of paths without a route: clients choose paths, so they cannot be labels."""

UNWATCHED_PATHS = frozenset({"/livez", "/readyz", "/health", "/metrics"})
"""Polled by probes and scrapers: no span, no access log line, no metrics."""

PROTECTED_PREFIXES = ("/v1/", "/api/")
"""Beginnings of the API's paths: they need a key, if there are any, and an allowed origin."""

_KEY = "gateway.route"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """A route's description for OpenAPI."""

    summary: str
    answer: type[BaseModel] | None = None
    """Schema of the JSON response; None if the response is not JSON."""
    error: type[BaseModel] = ErrorAnswer
    """Schema of the body of errors."""
    body: type[BaseModel] | None = None
    query: type[BaseModel] | None = None
    streams: bool = False
    """Whether it can respond with server-sent events."""
    status: int = 200
    """HTTP status of a success."""
    secured: bool = False
    """Whether it requires an API key if any are configured."""


class ApiRoute(Route):
    """A route for exactly the given methods.

    `ObserveMiddleware` handles the exceptions of endpoints, Starlette's included.
    """

    def __init__(
        self,
        path: str,
        endpoint: Callable[[Request], Awaitable[ASGIApp]],
        operation: Operation | None = None,
        *,
        methods: Collection[str] = ("GET",),
    ) -> None:
        super().__init__(path, endpoint, methods=methods)
        self.operation = operation
        self._is_plain = not self.param_convertors
        # Starlette adds HEAD to every GET route; a HEAD of a search would run the search.
        self.methods = {*methods}

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match the path and store the route's template in the scope."""
        if self._is_plain and scope["path"] != self.path:
            return Match.NONE, {}  # the common case, without a regular expression
        match, child_scope = super().matches(scope)
        if match is not Match.NONE:
            child_scope[_KEY] = self.path_format
        return match, child_scope

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the endpoint. Raises HttpError (405) if only the path matches."""
        if scope["method"] not in (self.methods or ()):
            raise _method_not_allowed(scope)
        answer = await self.endpoint(Request(scope, receive, send))
        await answer(scope, receive, send)


def _method_not_allowed(scope: Scope) -> HttpError:
    same_path = [r for r in scope["router"].routes if r.path_format == route_of(scope)]
    allowed = ", ".join(sorted({method for r in same_path for method in r.methods}))
    message = f"{scope['path']} takes {allowed}, given {scope['method']}"
    return HttpError(405, message, code="method_not_allowed", headers={"allow": allowed})


def route_of(scope: Scope) -> str:
    """Return the template of the matched route."""
    route: str = scope.get(_KEY, UNMATCHED)
    return route
