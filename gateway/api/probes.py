"""Operational endpoints: `/livez`, `/readyz` and its alias `/health`, `/metrics`."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from gateway.dependencies import Dependencies
from gateway.http.headers import INSTANCE_ID, headers_of
from gateway.observability.scrapes import Scrapes
from mesh.observability.exposition import wanted_by


class Probes:
    """Liveness, readiness and metrics as plain text."""

    def __init__(self, dependencies: Dependencies) -> None:
        self._dependencies = dependencies
        self._scrapes = Scrapes()
        instance_id = dependencies.settings.instance_id
        self._headers = {INSTANCE_ID: instance_id} if instance_id else {}

    async def live(self, request: Request) -> Response:
        """200 while the event loop runs."""
        return PlainTextResponse("ok\n", headers=self._headers)

    async def ready(self, request: Request) -> Response:
        """200 if a token can be produced, and why engines are refused; else 503 with the reason."""
        state = self._dependencies.readiness.state
        if state.reason is not None:
            return PlainTextResponse(f"not ready: {state.reason}\n", 503, self._headers)
        lines = ["ready", *(f"refused: {problem}" for problem in state.problems)]
        return PlainTextResponse("".join(f"{line}\n" for line in lines), headers=self._headers)

    async def metrics(self, request: Request) -> Response:
        """Prometheus metrics; in OpenMetrics format, with exemplars, if `Accept` names it."""
        headers = headers_of(request.scope)
        wanted = wanted_by(headers.get("accept", ""), headers.get("accept-encoding", ""))
        scraped = await self._scrapes.scrape(wanted)
        return Response(scraped.body, headers=scraped.headers)
