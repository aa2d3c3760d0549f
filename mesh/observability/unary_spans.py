"""Client spans of unary calls: a subclass of OpenTelemetry's gRPC interceptor.

The original does not cancel the call when its caller is cancelled, does not end that span, presets
the status to OK, and uses attribute names from before the conventions were stable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

import grpc
import grpc.aio
from opentelemetry import trace
from opentelemetry.instrumentation.grpc import filters
from opentelemetry.instrumentation.grpc._aio_client import UnaryUnaryAioClientInterceptor
from opentelemetry.trace import Span

from mesh.errors import GRPC_STATUS
from mesh.observability import telemetry, tracing

Request = TypeVar("Request")
Response = TypeVar("Response")

not_health_check = filters.negate(filters.health_check())
"""Health checks are frequent, and their spans carry no information."""


async def call_with_span(
    method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
    request: Request,
    details: grpc.aio.ClientCallDetails,
    target: str,
) -> Response:
    """Make the call in a client span. Raises AioRpcError.

    The interceptor is called here instead of being installed in the channel, where it would cost
    every call a task, recorded or not.
    """

    async def proceed(changed: grpc.aio.ClientCallDetails, request: Request) -> Any:
        return method(request, metadata=changed.metadata, timeout=changed.timeout)

    intercept: Any = _spans(target).intercept_unary_unary
    call = await intercept(proceed, details, request)
    response: Response = await call
    return response


@cache
def _spans(target: str) -> UnarySpans:
    return UnarySpans(target)


class UnarySpans(UnaryUnaryAioClientInterceptor):
    """Creates a span for each unary call to a target, except for health checks."""

    def __init__(self, target: str) -> None:
        """`target` is the channel's target."""
        super().__init__(telemetry.tracer, filter_=not_health_check)  # type: ignore[no-untyped-call]
        self._target = target

    @contextmanager
    def _start_span(self, method: str, **_: object) -> Iterator[Span]:
        span = tracing.call_span(method.lstrip("/"), self._target)
        # The base class propagates the span that is current for OpenTelemetry.
        with trace.use_span(span, record_exception=False, set_status_on_exception=False):
            yield span

    async def _wrap_unary_response(
        self, continuation: Callable[[], Awaitable[Any]], span: Span
    ) -> Any:
        code, description = grpc.StatusCode.INTERNAL, ""
        call: Any = None
        try:
            call = await continuation()
            code, description = await call.code(), await call.details() or ""
            return call
        except grpc.aio.AioRpcError as error:
            code, description = error.code(), error.details() or ""
            raise
        except asyncio.CancelledError:
            code = GRPC_STATUS[tracing.kind_of_cancellation()]
            if call is not None:
                # Cancelling `call.code()` does not cancel the call.
                call.cancel()
            raise
        finally:
            # The description may quote the request.
            may_quote = code is grpc.StatusCode.INVALID_ARGUMENT
            tracing.set_client_status(span, code, "" if may_quote else description)
            span.end()
