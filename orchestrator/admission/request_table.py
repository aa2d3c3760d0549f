"""The table of active requests, in memory only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Any

from mesh.errors import ErrorKind, MeshError
from mesh.protocol.chat import ToolPrompt
from orchestrator.admission.admission import Permit
from orchestrator.observability.request_account import RequestAccount


class RequestState(StrEnum):
    """The stage that a request has reached."""

    RETRIEVING = "retrieving"
    ENCODING = "encoding"
    WAITING = "waiting"
    STREAMING = "streaming"


class RequestAborted(MeshError):
    """An operator ended the request with CancelRequest."""

    def __init__(self) -> None:
        super().__init__(ErrorKind.CANCELLED, "an operator ended the request")


class ActiveRequest:
    """One active request: its state, its permit, its account, and a way to cancel it."""

    def __init__(self, request_id: str, account: RequestAccount, permit: Permit) -> None:
        self.request_id = request_id
        self.account = account
        self.permit = permit
        self.state = RequestState.ENCODING
        self.cancelled = False
        self.started = False
        """Whether the client has been sent the start of the generation."""
        self.tool_prompt = ToolPrompt.NONE
        self._on_cancel: Callable[[], object] | None = None

    def cancel(self) -> None:
        """Ends the request: cancels the operation in progress; no further one is started."""
        self.cancelled = True
        if self._on_cancel is not None:
            self._on_cancel()

    def on_cancel(self, callback: Callable[[], object]) -> _OnCancel:
        """Inside the block, `cancel` calls `callback`; at once if it was called before."""
        return _OnCancel(self, callback)

    def cancellable(self) -> _Cancellable:
        """Inside the block, `cancel` ends whatever is awaited. Raises RequestAborted."""
        return _Cancellable(self)

    def set_cancel_callback(self, callback: Callable[[], object] | None) -> None:
        """Used by `on_cancel` and `cancellable`."""
        self._on_cancel = callback
        if self.cancelled and callback is not None:
            callback()


class _OnCancel:
    __slots__ = ("_callback", "_request")

    def __init__(self, request: ActiveRequest, callback: Callable[[], object]) -> None:
        self._request = request
        self._callback = callback

    def __enter__(self) -> None:
        self._request.set_cancel_callback(self._callback)

    def __exit__(self, *_: object) -> None:
        self._request.set_cancel_callback(None)


class _Cancellable:
    __slots__ = ("_request", "_scope")

    def __init__(self, request: ActiveRequest) -> None:
        self._request = request
        self._scope = asyncio.timeout(None)

    async def __aenter__(self) -> None:
        await self._scope.__aenter__()
        self._request.set_cancel_callback(lambda: self._scope.reschedule(0))

    async def __aexit__(self, *error: Any) -> None:
        self._request.set_cancel_callback(None)
        try:
            await self._scope.__aexit__(*error)
        except TimeoutError:  # from this scope; any other TimeoutError passes unchanged
            raise RequestAborted from None


class RequestTable:
    """All active requests, oldest first. For one event loop."""

    def __init__(self) -> None:
        # A dict keeps insertion order. Clients choose request ids, so ids may repeat.
        self._requests: dict[ActiveRequest, None] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[ActiveRequest]:
        return iter(list(self._requests))

    def track(self, request: ActiveRequest) -> _Tracked:
        """Keeps `request` in the table inside the block."""
        return _Tracked(self._requests, request)

    def cancel(self, request_id: str) -> bool:
        """Cancels every request with this id; returns whether there was one."""
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
