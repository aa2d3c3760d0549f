"""Server interceptor of every RPC: context, errors, drain, metrics, span and access log."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import grpc.aio

from mesh.context import (
    FIRST_TOKEN_METADATA,
    IDLE_METADATA,
    KEY_NAME_METADATA,
    REQUEST_ID_METADATA,
    RequestContext,
    accept_request_id,
    is_key_name,
    seconds_of,
    use_request,
)
from mesh.errors import GRPC_STATUS, INTERNAL_MESSAGE, ErrorKind, MeshError, status_of
from mesh.observability import metrics
from mesh.observability.tracing import kind_of_cancellation, server_span, set_server_status

logger = logging.getLogger("mesh.rpc")

if TYPE_CHECKING:  # generic in the stubs only
    ServicerContext = grpc.aio.ServicerContext[Any, Any]
    Handler = grpc.RpcMethodHandler[Any, Any]


@dataclass
class _Details:
    method: str
    invocation_metadata: tuple[tuple[str, str | bytes], ...] = ()


ENDLESS_METHODS = frozenset({"SubscribeKvEvents", "WatchKeyUsage"})
"""Streams that end with the server only, so a drain does not wait for them."""

POLLED_METHODS = frozenset({"ListModels"})
"""Methods that services call every few seconds: successful calls are logged at DEBUG."""


class RpcInterceptor(grpc.aio.ServerInterceptor):
    """Runs each handler in its request's context and converts exceptions to a gRPC status.

    While `draining`, new calls are refused with UNAVAILABLE.
    """

    def __init__(self) -> None:
        self.draining = False
        self._aborting = False
        self._tasks: set[asyncio.Task[object]] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._handlers: dict[str, Handler] = {}

    @property
    def num_active(self) -> int:
        """Number of running calls."""
        return len(self._tasks)

    async def wait_idle(self) -> None:
        """Wait until no call is running."""
        await self._idle.wait()

    async def abort_running(self) -> int:
        """Abort the running calls with UNAVAILABLE, so that callers retry at another replica.

        Returns their number, after they have ended.
        """
        self._aborting = True
        running = list(self._tasks)
        for task in running:
            task.cancel()
        await self.wait_idle()
        return len(running)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        path = handler_call_details.method
        observed = self._handlers.get(path)
        if observed is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None  # not cached: callers choose such paths
            observed = self._handlers[path] = self._observed(handler, path)
        return observed

    def handlers_in(
        self, services: Sequence[grpc.GenericRpcHandler]
    ) -> Callable[[str], Handler | None]:
        """Finds the handler of a path as a call to the server does, for calls inside a stream."""

        @cache
        def handler_of(path: str) -> Handler | None:
            for service in services:
                handler = service.service(_Details(path))
                if handler is not None:
                    return self._observed(handler, path)
            return None

        return handler_of

    def _observed(self, handler: Handler, path: str) -> Handler:
        service, _, method = path.lstrip("/").partition("/")
        if service in metrics.UNOBSERVED_SERVICES or handler.request_streaming:
            return handler
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._observe_stream(handler.unary_stream, service, method),
                handler.request_deserializer,
                handler.response_serializer,
            )
        return grpc.unary_unary_rpc_method_handler(
            self._observe_unary(handler.unary_unary, service, method),
            handler.request_deserializer,
            handler.response_serializer,
        )

    def _observe_unary(self, behavior: Any, service: str, method: str) -> Any:
        async def call(request: Any, context: ServicerContext) -> Any:
            return await behavior(request, context)

        return self._observe(call, service, method)

    def _observe_stream(self, behavior: Any, service: str, method: str) -> Any:
        async def call(request: Any, context: ServicerContext) -> None:
            result = behavior(request, context)
            if isinstance(result, AsyncIterator):
                # Closed in this task: if the garbage collector closes a generator, it frees its
                # resources too late.
                async with aclosing(result) as responses:  # type: ignore[type-var]
                    async for response in responses:
                        await _write(context, response)
            else:
                await result

        return self._observe(call, service, method)

    def _observe(
        self, call: Callable[[Any, ServicerContext], Awaitable[Any]], service: str, method: str
    ) -> Callable[[Any, ServicerContext], Awaitable[Any]]:
        async def observed(request: Any, context: ServicerContext) -> Any:
            task = None if method in ENDLESS_METHODS else self._enter()
            try:
                response = await self._serve(call, service, method, request, context)
                if isinstance(response, MeshError):
                    # After the span has ended: otherwise it could end after its caller's span.
                    await _abort(context, response)
                return response
            finally:
                if task is not None:
                    self._leave(task)

        return observed

    async def _serve(
        self,
        call: Callable[[Any, ServicerContext], Awaitable[Any]],
        service: str,
        method: str,
        request: Any,
        context: ServicerContext,
    ) -> Any:
        """The response, or the error to send, after it is recorded in span, metrics and log."""
        started = time.monotonic()
        metadata = {key: str(value) for key, value in context.invocation_metadata() or ()}
        with (
            use_request(_request_context(context, metadata)) as current,
            server_span(service, method, metadata) as span,
            metrics.labelled(metrics.RPC_ACTIVE, service, method).track_inprogress(),
        ):
            code, description = grpc.StatusCode.OK, ""
            try:
                self._refuse_if_draining()
                return await call(request, context)
            except asyncio.CancelledError:
                # gRPC cancels the handler if the caller cancels and if the deadline passes.
                code = GRPC_STATUS[kind_of_cancellation()]
                if not self._aborting:
                    raise
                code, description = grpc.StatusCode.UNAVAILABLE, "aborted by the drain"
                return MeshError(ErrorKind.UNAVAILABLE, "server stopped")
            except Exception as error:
                failure = _as_mesh_error(error, method)
                code, description = GRPC_STATUS[failure.kind], failure.for_the_log
                logger.debug("request failed", extra={"error": failure.message})
                metrics.ERRORS.labels(service, failure.kind.value).inc()
                return failure
            finally:
                set_server_status(span, code, description)
                duration = time.monotonic() - started
                metrics.observe_rpc(service, method, code, duration)
                _log_access(method, code, duration, description, current)

    def _refuse_if_draining(self) -> None:
        if self.draining:
            raise MeshError(ErrorKind.UNAVAILABLE, "this server is draining", retry_after=1.0)

    def _enter(self) -> asyncio.Task[object]:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._idle.clear()
        return task

    def _leave(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not self._tasks:
            self._idle.set()


def _as_mesh_error(error: Exception, method: str) -> MeshError:
    """The error itself, or a generic one for any other exception, which is logged."""
    if isinstance(error, MeshError):
        return error
    logger.error("unexpected error", extra={"method": method}, exc_info=error)
    return MeshError(ErrorKind.INTERNAL, INTERNAL_MESSAGE)


def _log_access(
    method: str,
    code: grpc.StatusCode,
    duration: float,
    description: str,
    request: RequestContext,
) -> None:
    routine = method in POLLED_METHODS and code is grpc.StatusCode.OK
    level = logging.DEBUG if routine else logging.INFO
    if not logger.isEnabledFor(level):
        return
    fields = {"method": method, "code": code.name, "duration_seconds": duration, **request.fields}
    if description:
        fields["error"] = description
    logger.log(level, "request finished", extra=fields)


async def _write(context: ServicerContext, response: Any) -> None:
    """Send one message; waits until the transport has room (backpressure)."""
    try:
        await context.write(response)
    except grpc.aio.BaseError as error:
        # The caller disconnected during the write. gRPC does not always cancel the handler before
        # the write fails.
        raise asyncio.CancelledError from error


async def _abort(context: ServicerContext, error: MeshError) -> NoReturn:
    status = status_of(error)
    try:
        await context.abort(status.code, status.details, status.trailing_metadata)
    except grpc.aio.AbortError:
        raise
    except grpc.aio.BaseError as failure:
        # The deadline passed and the caller has disconnected, so the status cannot be sent.
        raise asyncio.CancelledError from failure
    raise AssertionError("abort always raises")


def _request_context(context: ServicerContext, given: Mapping[str, str]) -> RequestContext:
    remaining = context.time_remaining()
    deadline = None if remaining is None else time.monotonic() + remaining
    key_name = given.get(KEY_NAME_METADATA, "")
    first_token = seconds_of(given.get(FIRST_TOKEN_METADATA))
    return RequestContext(
        request_id=accept_request_id(given.get(REQUEST_ID_METADATA)),
        deadline=deadline,
        first_token_deadline=None if first_token is None else time.monotonic() + first_token,
        idle_timeout=seconds_of(given.get(IDLE_METADATA)),
        key_name=key_name if is_key_name(key_name) else "",
    )
