"""Routes that know their template and can say for OpenAPI what they take and give."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass

from pydantic import BaseModel
from starlette.requests import Request
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.http.errors import HttpError

UNMATCHED = "unmatched"
"""What metrics call a path that is no route: clients choose paths, so they are no label."""

UNWATCHED_PATHS = frozenset({"/livez", "/readyz", "/metrics"})
"""Asked all the time by machines: no span, no access line, no metrics."""

_KEY = "gateway.route"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What OpenAPI says of a route."""

    summary: str
    answer: type[BaseModel] | None = None
    """The answer as JSON; None: not JSON."""
    body: type[BaseModel] | None = None
    query: type[BaseModel] | None = None
    streams: bool = False
    """Whether it can answer as server-sent events."""
    status: int = 200
    """Of a success."""
    secured: bool = False
    """Whether it asks for a key where keys are set."""


class ApiRoute(Route):
    """A route for exactly the methods it names.

    What its endpoint raises is left to `ObserveMiddleware`, errors of Starlette's own included.
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
        # Starlette adds HEAD wherever there is GET; a HEAD of a search would search.
        self.methods = {*methods}

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """As any route, and leaves the template in the scope."""
        if self._is_plain and scope["path"] != self.path:
            return Match.NONE, {}  # what most routes say: without a look at the whole of it
        match, child_scope = super().matches(scope)
        if match is not Match.NONE:
            child_scope[_KEY] = self.path_format
        return match, child_scope

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers. Raises HttpError (405) where only the path is right."""
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
    """The template of the route that took the request."""
    route: str = scope.get(_KEY, UNMATCHED)
    return route
