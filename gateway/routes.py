"""Routes that know their template and can say for OpenAPI what they take and give."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from starlette.routing import Match, Route
from starlette.types import Scope

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
    """A route for exactly the methods it names."""

    def __init__(
        self,
        path: str,
        endpoint: Callable[..., Any],
        operation: Operation | None = None,
        *,
        methods: Collection[str] = ("GET",),
    ) -> None:
        super().__init__(path, endpoint, methods=methods)
        self.operation = operation
        # Starlette adds HEAD wherever there is GET; a HEAD of a search would search.
        self.methods = {*methods}

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """As any route, and leaves the template in the scope."""
        match, child_scope = super().matches(scope)
        if match is not Match.NONE:
            child_scope[_KEY] = self.path_format
        return match, child_scope


def route_of(scope: Scope) -> str:
    """The template of the route that took the request."""
    route: str = scope.get(_KEY, UNMATCHED)
    return route
