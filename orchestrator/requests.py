"""The table of requests that are being worked on. It lives in memory only."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from enum import StrEnum

from mesh.errors import ErrorKind, MeshError
from orchestrator.admission import Permit
from orchestrator.spans import NO_SPAN


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

    @contextmanager
    def cancels(self, call_off: Callable[[], object]) -> Iterator[None]:
        """Inside the block, `cancel` also runs `call_off`; at once if it has been called."""
        self._on_cancel = call_off
        if self.cancelled:
            call_off()
        try:
            yield
        finally:
            self._on_cancel = None

    @asynccontextmanager
    async def cancellable(self) -> AsyncIterator[None]:
        """Inside the block, `cancel` ends whatever is awaited; raises MeshError (CANCELLED)."""
        try:
            async with asyncio.timeout(None) as scope:
                with self.cancels(lambda: scope.reschedule(0)):
                    yield
        except TimeoutError:
            if not scope.expired():
                raise
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

    @contextmanager
    def track(self, request_id: str, method: str) -> Iterator[ActiveRequest]:
        """Holds an entry inside the block."""
        request = ActiveRequest(request_id, method)
        self._requests[request] = None
        try:
            yield request
        finally:
            del self._requests[request]

    def cancel(self, request_id: str) -> bool:
        """Cancels what has this id; False if nothing has."""
        found = [request for request in self if request.request_id == request_id]
        for request in found:
            request.cancel()
        return bool(found)
