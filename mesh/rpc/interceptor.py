"""What every RPC of every service goes through: context, errors, drain, metrics, access line."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
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


class RpcInterceptor(grpc.aio.ServerInterceptor):
    """Runs each handler in its request's context and turns what it raises into a status.

    While `draining`, new calls are refused with UNAVAILABLE.
    """

    def __init__(self) -> None:
        self.draining = False
        self._cutting_off = False
        self._tasks: set[asyncio.Task[object]] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._handlers: dict[str, Handler] = {}

    @property
    def num_active(self) -> int:
        """Calls that run now."""
        return len(self._tasks)

    async def wait_idle(self) -> None:
        """Returns once no call is running."""
        await self._idle.wait()

    async def cut_off(self) -> int:
        """Ends the calls that still run with UNAVAILABLE, so that callers go elsewhere.

        Returns how many there were, once they have ended.
        """
        self._cutting_off = True
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
        watched = self._handlers.get(path)
        if watched is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None  # and not remembered: callers choose such paths
            watched = self._handlers[path] = self._watched(handler, path)
        return watched

    def _watched(self, handler: Handler, path: str) -> Handler:
        service, _, method = path.lstrip("/").partition("/")
        if service in metrics.UNWATCHED_SERVICES or handler.request_streaming:
            return handler
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._watch_stream(handler.unary_stream, service, method),
                handler.request_deserializer,
                handler.response_serializer,
            )
        return grpc.unary_unary_rpc_method_handler(
            self._watch_unary(handler.unary_unary, service, method),
            handler.request_deserializer,
            handler.response_serializer,
        )

    def _watch_unary(self, behavior: Any, service: str, method: str) -> Any:
        async def call(request: Any, context: ServicerContext) -> Any:
            return await behavior(request, context)

        return self._watch(call, service, method)

    def _watch_stream(self, behavior: Any, service: str, method: str) -> Any:
        async def call(request: Any, context: ServicerContext) -> None:
            result = behavior(request, context)
            if isinstance(result, AsyncIterator):
                # Closed here, by this task: a generator left to the garbage collector would
                # free its sequence too late.
                async with aclosing(result) as responses:  # type: ignore[type-var]
                    async for response in responses:
                        await _write(context, response)
            else:
                await result

        return self._watch(call, service, method)

    def _watch(
        self, call: Callable[[Any, ServicerContext], Awaitable[Any]], service: str, method: str
    ) -> Callable[[Any, ServicerContext], Awaitable[Any]]:
        async def watched(request: Any, context: ServicerContext) -> Any:
            task = self._enter()
            try:
                answer = await told(request, context)
                if isinstance(answer, MeshError):
                    # Here, not inside: a span that outlives its caller's reads as if the caller
                    # had not waited.
                    await _abort(context, answer)
                return answer
            finally:
                self._leave(task)

        async def told(request: Any, context: ServicerContext) -> Any:
            """The answer, or the error that is to be sent, once everybody knows of it."""
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
                    # gRPC cancels a handler alike when its caller goes and when its time is up.
                    code = GRPC_STATUS[kind_of_cancellation()]
                    if not self._cutting_off:
                        raise
                    code, description = grpc.StatusCode.UNAVAILABLE, "cut off by the drain"
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
                    took = metrics.labelled(metrics.RPC_DURATION, service, method, code.name)
                    took.observe(duration, metrics.exemplar())
                    _log_access(method, code, duration, description, current)

        return watched

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
    """The error itself, or a generic one for what nobody mapped, whose details are logged."""
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
    if not logger.isEnabledFor(logging.INFO):
        return
    fields = {"method": method, "code": code.name, "duration_seconds": duration, **request.fields}
    if description:
        fields["error"] = description
    logger.info("request finished", extra=fields)


async def _write(context: ServicerContext, response: Any) -> None:
    """Sends one message; returns when the transport has room for it, which is the backpressure."""
    try:
        await context.write(response)
    except grpc.aio.BaseError as error:
        # The caller went away while the message was on its way: the same as a cancellation,
        # which gRPC tells only sometimes before the write fails.
        raise asyncio.CancelledError from error


async def _abort(context: ServicerContext, error: MeshError) -> NoReturn:
    status = status_of(error)
    try:
        await context.abort(status.code, status.details, status.trailing_metadata)
    except grpc.aio.AbortError:
        raise
    except grpc.aio.BaseError as failure:
        # The caller's time ran out with ours, and it has already gone: nobody is there to tell.
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
