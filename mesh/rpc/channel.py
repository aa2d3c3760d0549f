"""Client side: channels, and calls that carry request id, trace context and deadline."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from typing import Any, Generic, TypeVar, cast

import grpc
import grpc.aio
from opentelemetry.trace import Span

from mesh.context import (
    FIRST_TOKEN_METADATA,
    IDLE_METADATA,
    KEY_NAME_METADATA,
    REQUEST_ID_METADATA,
    current_request,
)
from mesh.errors import ErrorKind, MeshError, from_rpc_error
from mesh.observability import metrics, telemetry
from mesh.observability.recording.current import current_span
from mesh.observability.tracing import ClientSpan, inject
from mesh.observability.unary_spans import call_with_span
from mesh.rpc.attempts import Attempts, PeersMethod
from mesh.rpc.first_message import read_first
from mesh.rpc.multiplex.channel import MultiplexChannel
from mesh.rpc.secure_channel import ReloadingChannel
from mesh.rpc.tls import NO_TLS, TlsFiles
from mesh.rpc.transport import MAX_MESSAGE_BYTES, channel_options

STATUS_SECONDS = 1.0
"""Maximum time to wait for the status of a stream after its last message has been read."""

Request = TypeVar("Request")
Response = TypeVar("Response")

Again = Callable[[MeshError], Awaitable[grpc.aio.UnaryStreamCall[Any, Any]]]


def open_channel(
    target: str,
    tls: TlsFiles = NO_TLS,
    server_name: str | None = None,
    *,
    max_response_bytes: int = MAX_MESSAGE_BYTES,
) -> grpc.aio.Channel:
    """Open a channel to `target` (any gRPC target); the caller closes it. Connects on first use.

    With a CA in `tls` it uses TLS. The server's certificate must be valid for `server_name`, by
    default the host of `target`: for replicas that is the Service's name, not the address.
    A `BalancedChannel` (mesh.rpc.peers) spreads calls over all replicas. Raises TlsError.
    """
    options = channel_options(max_response_bytes)
    if not tls.for_channel:
        return MultiplexChannel(grpc.aio.insecure_channel(target, options=options))
    name = server_name or target.rpartition(":")[0].strip("[]")
    options = [*options, ("grpc.ssl_target_name_override", name)]
    return MultiplexChannel(
        ReloadingChannel(
            tls,
            lambda credentials: grpc.aio.secure_channel(target, credentials, options),
        )
    )


async def call_unary(
    method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
    request: Request,
    timeout: float | None = None,
    *,
    hold: bool = True,
) -> Response:
    """Make a unary call within the request's deadline; raises MeshError.

    `timeout` (seconds) can shorten the deadline but not extend it. `hold` False: if no peer is
    ready, any that answers will do.
    """
    name, timeout = _method_name(method), _timeout(timeout)
    with metrics.ClientCall(name):
        if not isinstance(method, PeersMethod):
            return await _try_unary(method, request, name, _target(method), timeout)
        attempts = method.attempts(timeout, hold=hold)
        try:
            while True:
                tried = await attempts.next()
                try:
                    return await _try_unary(
                        tried, request, name, _target(method), attempts.timeout()
                    )
                except MeshError as error:
                    await attempts.failed(error)
        finally:
            attempts.end()


async def _try_unary(
    method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
    request: Request,
    name: str,
    target: str,
    timeout: float | None,
) -> Response:
    """Make the call at one peer; raises MeshError."""
    metadata, current = _metadata(), current_span()
    try:
        if telemetry.recorded(current):
            details = grpc.aio.ClientCallDetails(
                f"/{name}", timeout, grpc.aio.Metadata(*metadata), None, None
            )
            return await call_with_span(method, request, details, target)
        inject(metadata, current)
        return await method(request, metadata=tuple(metadata), timeout=timeout)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error


class ResponseStream(Generic[Response]):
    """The responses of a call, as an asynchronous iterator that raises MeshError."""

    def __init__(
        self, call: grpc.aio.UnaryStreamCall[Any, Response], again: Again | None = None
    ) -> None:
        """`again` repeats a call that failed before its first message, or raises its error."""
        self._call = call
        self._again = again
        self._has_first = False
        self._has_last = False
        self._ended = False
        self.error: MeshError | None = None
        """The call's failure, after it was raised to a reader."""

    def __aiter__(self) -> ResponseStream[Response]:
        return self

    async def __anext__(self) -> Response:
        try:
            response = await (self._call.read() if self._has_first else self._first())
        except grpc.aio.AioRpcError as error:
            self.error = from_rpc_error(error)
            raise self.error from error
        except MeshError as error:
            self.error = error
            raise
        except asyncio.CancelledError:
            # gRPC raises this if the call was cancelled locally, if the channel was closed, and if
            # the reading task was cancelled.
            task = asyncio.current_task()
            if task is None or not task.cancelling():
                raise MeshError(ErrorKind.CANCELLED, "the call was cancelled") from None
            raise
        if response is grpc.aio.EOF:
            self._ended = True
            raise StopAsyncIteration
        return cast("Response", response)

    async def _first(self) -> Response | object:
        while True:
            try:
                response = await read_first(self._call)
                self._has_first = True
                return response
            except grpc.aio.AioRpcError as error:
                if self._again is None:
                    raise
                self._call = await self._again(from_rpc_error(error))

    @property
    def has_ready(self) -> bool | None:
        """Whether a response has arrived that is not read yet; None: gRPC holds what arrives."""
        return getattr(self._call, "has_ready", None)

    def pass_on(
        self, take: Callable[[list[Response], Callable[[], None]], list[Response] | None]
    ) -> None:
        """Call `take` with responses that arrive while a reader waits, instead of the reader.

        It returns what the reader gets, or None if it takes them later and then calls the function
        that it was given. It runs in the turn of the event loop in which the responses arrived, so
        it must not take long. Plain calls wake the reader, as without it.
        """
        pass_on = getattr(self._call, "pass_on", None)
        if pass_on is not None:
            pass_on(take)

    def has_last(self) -> None:
        """Record that the last message has been read, and only the status is missing."""
        self._has_last = True

    async def complete(self) -> bool:
        """Whether all has been read; waits for the status if only that is missing."""
        if self._has_last and not self._ended:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STATUS_SECONDS):
                    await self._call.code()
        return self._has_last or self._ended

    def cancel(self) -> None:
        """Cancel the call; a waiting reader gets MeshError (CANCELLED)."""
        self._call.cancel()


class open_stream(Generic[Request, Response]):
    """Opens a response stream; leaving the block cancels the call if it has not ended.

    Reading raises MeshError. `timeout` (seconds) can shorten the request's deadline. `parent` is
    the parent of the call's span; None: the current span. `hold` as in `call_unary`.

        async with open_stream(stub.Generate, request) as responses:
            async for response in responses:
                ...
    """

    def __init__(
        self,
        method: grpc.aio.UnaryStreamMultiCallable[Request, Response],
        request: Request,
        timeout: float | None = None,
        parent: Span | None = None,
        *,
        hold: bool = True,
    ) -> None:
        self._hold = hold
        self._method = method
        self._request = request
        self._timeout = timeout
        self._parent = parent
        self._attempts: Attempts | None = None

    async def __aenter__(self) -> ResponseStream[Response]:
        method, name = self._method, _method_name(self._method)
        self._traceparent: list[tuple[str, str]] = []
        self._span = ClientSpan(
            name, self._traceparent, target=_target(method), parent=self._parent
        )
        self._observed = metrics.ClientCall(name)
        timeout = _timeout(self._timeout)
        try:
            if isinstance(method, PeersMethod):
                self._attempts = method.attempts(timeout, hold=self._hold)
                call = await self._attempt(self._attempts)
                self._responses = ResponseStream[Response](call, self._again)
            else:
                call = method(self._request, metadata=self._metadata(), timeout=timeout)
                self._responses = ResponseStream[Response](call)
        except BaseException as error:  # such as a closed channel
            self._finish(error)
            raise
        return self._responses

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            if not isinstance(error, asyncio.CancelledError):
                self._span.complete = await self._responses.complete()
        except BaseException as failure:
            self._end(failure)
            raise
        self._end(error)

    async def _attempt(self, attempts: Attempts) -> grpc.aio.UnaryStreamCall[Request, Response]:
        method = await attempts.next()
        call: grpc.aio.UnaryStreamCall[Request, Response] = method(
            self._request, metadata=self._metadata(), timeout=attempts.timeout()
        )
        return call

    def _metadata(self) -> Sequence[tuple[str, str]]:
        # No `grpc.aio.Metadata`: iterating over one costs more than what a call does with it.
        return (*_metadata(), *self._traceparent)

    async def _again(self, error: MeshError) -> grpc.aio.UnaryStreamCall[Request, Response]:
        assert self._attempts is not None
        await self._attempts.failed(error)
        return await self._attempt(self._attempts)

    def _end(self, error: BaseException | None) -> None:
        self._responses.cancel()
        self._span.error = self._responses.error
        self._finish(error)

    def _finish(self, error: BaseException | None) -> None:
        if self._attempts is not None:
            self._attempts.end()
        self._span.end(error)
        # After a complete call, the exception that left the block is not the call's failure.
        self._observed.end(self._span.error or (None if self._span.complete else error))


def _metadata() -> list[tuple[str, str]]:
    request = current_request()
    if request is None:
        return []
    metadata = [(REQUEST_ID_METADATA, request.request_id)]
    if request.key_name:
        metadata.append((KEY_NAME_METADATA, request.key_name))
    if request.first_token_deadline is not None:
        left = max(0.0, request.first_token_deadline - time.monotonic())
        metadata.append((FIRST_TOKEN_METADATA, f"{left:.3f}"))
    if request.idle_timeout is not None:
        metadata.append((IDLE_METADATA, f"{request.idle_timeout:.3f}"))
    return metadata


def _timeout(limit: float | None) -> float | None:
    request = current_request()
    remaining = None if request is None else request.remaining()
    if remaining is None or limit is None:
        return limit if remaining is None else remaining
    return min(remaining, limit)


def _method_name(method: object) -> str:
    # grpc.aio has the name in a private field only, as bytes.
    return _normalized(getattr(method, "_method", b"unknown/unknown"))


@cache
def _normalized(name: bytes | str) -> str:
    return (name.decode() if isinstance(name, bytes) else name).lstrip("/")


def _target(method: object) -> str:
    target = getattr(getattr(method, "_channel", None), "target", b"")
    return target.decode() if isinstance(target, bytes) else str(target)
