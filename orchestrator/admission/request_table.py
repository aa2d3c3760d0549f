"""The table of requests that are being worked on. It lives in memory only."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Any

from mesh.errors import ErrorKind, MeshError
from orchestrator.admission.admission import Permit
from orchestrator.observability.spans import NO_SPAN


class RequestState(StrEnum):
    """Where a request is on its way."""

    RETRIEVING = "retrieving"
    ENCODING = "encoding"
    WAITING = "waiting"
    STREAMING = "streaming"


class ActiveRequest:
    """One request; the pipeline keeps it up to date."""

    def __init__(self, request_id: str, method: str) -> None:
        self.request_id = request_id
        self.method = method
        self.model = ""
        self.operation = ""
        """What is asked of the model, as OpenTelemetry names it."""
        self.state = RequestState.ENCODING
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.cancelled = False
        self.first_token_seen = False
        self.untold_ttft: float | None = None
        """Seconds to the first text, until metrics and access line know of it."""
        self.generation = NO_SPAN
        self.permit: Permit | None = None
        self._started = time.monotonic()
        self._on_cancel: Callable[[], object] | None = None

    @property
    def age_seconds(self) -> float:
        """Since it was admitted."""
        return time.monotonic() - self._started

    def cancel(self) -> None:
        """Ends the request: what it waits for now is called off, and nothing new is begun."""
        self.cancelled = True
        if self._on_cancel is not None:
            self._on_cancel()

    def cancels(self, call_off: Callable[[], object]) -> _Cancels:
        """Inside the block, `cancel` also runs `call_off`; at once if it has been called."""
        return _Cancels(self, call_off)

    def cancellable(self) -> _Cancellable:
        """Inside the block, `cancel` ends whatever is awaited; raises MeshError (CANCELLED)."""
        return _Cancellable(self)

    def on_cancel(self, call_off: Callable[[], object] | None) -> None:
        """For the two above."""
        self._on_cancel = call_off
        if self.cancelled and call_off is not None:
            call_off()


class _Cancels:
    __slots__ = ("_call_off", "_request")

    def __init__(self, request: ActiveRequest, call_off: Callable[[], object]) -> None:
        self._request = request
        self._call_off = call_off

    def __enter__(self) -> None:
        self._request.on_cancel(self._call_off)

    def __exit__(self, *_: object) -> None:
        self._request.on_cancel(None)


class _Cancellable:
    __slots__ = ("_request", "_scope")

    def __init__(self, request: ActiveRequest) -> None:
        self._request = request
        self._scope = asyncio.timeout(None)

    async def __aenter__(self) -> None:
        await self._scope.__aenter__()
        self._request.on_cancel(lambda: self._scope.reschedule(0))

    async def __aexit__(self, *error: Any) -> None:
        self._request.on_cancel(None)
        try:
            await self._scope.__aexit__(*error)
        except TimeoutError:  # the scope's own; another one passes it by
            raise MeshError(ErrorKind.CANCELLED, "an operator ended the request") from None


class RequestTable:
    """All active requests, oldest first. For one event loop."""

    def __init__(self) -> None:
        # A dict keeps the order; ids are the callers' to choose, so they may repeat.
        self._requests: dict[ActiveRequest, None] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[ActiveRequest]:
        return iter(list(self._requests))

    def track(self, request_id: str, method: str) -> _Tracked:
        """Holds an entry, an `ActiveRequest`, inside the block."""
        return _Tracked(self._requests, ActiveRequest(request_id, method))

    def cancel(self, request_id: str) -> bool:
        """Cancels what has this id; False if nothing has."""
        found = [request for request in self if request.request_id == request_id]
        for request in found:
            request.cancel()
        return bool(found)


class _Tracked:
    __slots__ = ("_request", "_requests")

    def __init__(self, requests: dict[ActiveRequest, None], request: ActiveRequest) -> None:
        self._requests = requests
        self._request = request

    def __enter__(self) -> ActiveRequest:
        self._requests[self._request] = None
        return self._request

    def __exit__(self, *_: object) -> None:
        del self._requests[self._request]
