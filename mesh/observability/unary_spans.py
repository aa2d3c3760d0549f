"""Client spans of unary calls: the library's interceptor, with its faults mended.

As it comes, it does not cancel a call whose caller is cancelled, never ends that call's span,
presets the status to OK, and names attributes as the conventions did before they were stable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, TypeVar

import grpc
import grpc.aio
from opentelemetry.instrumentation.grpc import filters
from opentelemetry.instrumentation.grpc._aio_client import UnaryUnaryAioClientInterceptor
from opentelemetry.trace import Span, SpanKind

from mesh.errors import GRPC_STATUS
from mesh.observability import semconv, tracing
from mesh.observability.semconv import Outcome

Request = TypeVar("Request")
Response = TypeVar("Response")

not_health_check = filters.negate(filters.health_check())
"""Health checks come every second from every neighbour; nobody wants their spans."""


async def call_with_span(
    method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
    request: Request,
    details: grpc.aio.ClientCallDetails,
    target: str,
) -> Response:
    """Makes the call inside a span of its own. Raises AioRpcError.

    The interceptor is called here and not installed in the channel, where it costs every call a
    task, recorded or not.
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
    """Makes a span for each unary call to a target, health checks excepted."""

    def __init__(self, target: str) -> None:
        """`target` is the channel's."""
        super().__init__(tracing.TRACER, filter_=not_health_check)  # type: ignore[no-untyped-call]
        self._target = target

    def _start_span(self, method: str, **options: Any) -> AbstractContextManager[Span]:
        name = method.lstrip("/")
        attributes = tracing.rpc_attributes(name, self._target)
        # Not the tracer of the base class: tests put another one in its place.
        return tracing.TRACER.start_as_current_span(
            name,
            kind=SpanKind.CLIENT,
            attributes={**attributes, semconv.OUTCOME: Outcome.OK},
            **options,
        )

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
                # Whoever waits for a call's code does not take the call along.
                call.cancel()
            raise
        finally:
            # What is said of a wrong request may quote it.
            quotes = code is grpc.StatusCode.INVALID_ARGUMENT
            tracing.set_client_status(span, code, "" if quotes else description)
            span.end()
