"""The one error that crosses a service border, and its tables to gRPC and HTTP.

    MeshError(kind, message, param, retry_after)

A service raises it, the server interceptor turns it into a gRPC status (`status_of`), the
caller turns that back into the same error (`from_rpc_error`), the gateway into an HTTP answer.
The kinds double as metric labels, so they are few and stable.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple

import grpc
import grpc.aio
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

logger = logging.getLogger("mesh.errors")

KIND_METADATA = "mesh-error-kind"
"""Trailing metadata that carries the kind: gRPC raises some status codes by itself."""

PARAM_METADATA = "mesh-error-param"
"""Trailing metadata that names the request field at fault."""

STATUS_DETAILS_METADATA = "grpc-status-details-bin"
"""Where gRPC carries google.rpc.Status, and in it RetryInfo."""

INTERNAL_MESSAGE = "internal error; the log has the details under this request id"


class ErrorKind(StrEnum):
    """What went wrong, as far as a caller can act on it."""

    INVALID_REQUEST = "invalid_request"
    CONTEXT_TOO_LONG = "context_too_long"
    UNAUTHENTICATED = "unauthenticated"
    MODEL_NOT_FOUND = "model_not_found"
    OVERLOADED = "overloaded"
    UNAVAILABLE = "unavailable"
    DEADLINE = "deadline"
    CANCELLED = "cancelled"
    UNIMPLEMENTED = "unimplemented"
    INTERNAL = "internal"


GRPC_STATUS: Mapping[ErrorKind, grpc.StatusCode] = MappingProxyType(
    {
        ErrorKind.INVALID_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
        ErrorKind.CONTEXT_TOO_LONG: grpc.StatusCode.INVALID_ARGUMENT,
        ErrorKind.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
        ErrorKind.MODEL_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
        ErrorKind.OVERLOADED: grpc.StatusCode.RESOURCE_EXHAUSTED,
        ErrorKind.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
        ErrorKind.DEADLINE: grpc.StatusCode.DEADLINE_EXCEEDED,
        ErrorKind.CANCELLED: grpc.StatusCode.CANCELLED,
        ErrorKind.UNIMPLEMENTED: grpc.StatusCode.UNIMPLEMENTED,
        ErrorKind.INTERNAL: grpc.StatusCode.INTERNAL,
    }
)


class HttpError(NamedTuple):
    """How a kind looks over HTTP: the status, and `type` and `code` of OpenAI's error body."""

    status: int
    type: str
    code: str | None


HTTP_ERROR: Mapping[ErrorKind, HttpError] = MappingProxyType(
    {
        ErrorKind.INVALID_REQUEST: HttpError(400, "invalid_request_error", None),
        ErrorKind.CONTEXT_TOO_LONG: HttpError(
            400, "invalid_request_error", "context_length_exceeded"
        ),
        ErrorKind.UNAUTHENTICATED: HttpError(401, "authentication_error", "invalid_api_key"),
        ErrorKind.MODEL_NOT_FOUND: HttpError(404, "invalid_request_error", "model_not_found"),
        ErrorKind.OVERLOADED: HttpError(429, "rate_limit_error", "rate_limit_exceeded"),
        ErrorKind.UNAVAILABLE: HttpError(503, "server_error", "unavailable"),
        ErrorKind.DEADLINE: HttpError(504, "timeout_error", "deadline_exceeded"),
        ErrorKind.CANCELLED: HttpError(499, "cancelled", "cancelled"),
        ErrorKind.UNIMPLEMENTED: HttpError(501, "invalid_request_error", "unimplemented"),
        ErrorKind.INTERNAL: HttpError(500, "server_error", "internal_error"),
    }
)

# A status without our kind comes from gRPC itself or from a stranger in between. UNKNOWN is an
# exception that nobody mapped; RESOURCE_EXHAUSTED is then a message over the size limit.
_KIND_OF_STATUS: Mapping[grpc.StatusCode, ErrorKind] = MappingProxyType(
    {
        grpc.StatusCode.INVALID_ARGUMENT: ErrorKind.INVALID_REQUEST,
        grpc.StatusCode.OUT_OF_RANGE: ErrorKind.INVALID_REQUEST,
        grpc.StatusCode.UNAUTHENTICATED: ErrorKind.UNAUTHENTICATED,
        grpc.StatusCode.RESOURCE_EXHAUSTED: ErrorKind.INVALID_REQUEST,
        grpc.StatusCode.UNAVAILABLE: ErrorKind.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED: ErrorKind.DEADLINE,
        grpc.StatusCode.CANCELLED: ErrorKind.CANCELLED,
        grpc.StatusCode.UNIMPLEMENTED: ErrorKind.UNIMPLEMENTED,
    }
)

# What gRPC itself says of these names addresses, sockets and files, which are no business of
# whoever the message reaches in the end.
_OWN_WORDS: Mapping[ErrorKind, str] = MappingProxyType(
    {
        ErrorKind.INVALID_REQUEST: "a message to a service behind this one is not acceptable",
        ErrorKind.UNAUTHENTICATED: "a service behind this one does not accept its credentials",
        ErrorKind.UNAVAILABLE: "a service behind this one cannot be reached",
        ErrorKind.DEADLINE: "the request took longer than it may",
        ErrorKind.CANCELLED: "the request was cancelled behind this service",
        ErrorKind.UNIMPLEMENTED: "a service behind this one does not know this call",
        ErrorKind.INTERNAL: INTERNAL_MESSAGE,
    }
)

_KIND_OF_NAME: Mapping[str, ErrorKind] = MappingProxyType({kind.value: kind for kind in ErrorKind})


class MeshError(Exception):
    """A failure that the caller is told of: `message` is for them and holds no secrets."""

    def __init__(
        self,
        kind: ErrorKind,
        message: str,
        *,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        """`param` names the request field at fault; `retry_after` is in seconds."""
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.param = param
        self.retry_after = retry_after

    @property
    def for_the_log(self) -> str:
        """The message, unless it may quote the request: no text of that belongs into a log."""
        if self.kind is ErrorKind.INVALID_REQUEST:
            return f"{self.param or 'the request'} is not valid"
        return self.message

    def __repr__(self) -> str:
        return f"MeshError({self.kind.value}: {self.message})"


def invalid(param: str, message: str) -> MeshError:
    """A field that is out of bounds; `message` names the field, the limit and the given value."""
    return MeshError(ErrorKind.INVALID_REQUEST, message, param=param)


class RpcStatus(NamedTuple):
    """What `context.abort` wants."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: tuple[tuple[str, str | bytes], ...]


def status_of(error: MeshError) -> RpcStatus:
    """The gRPC status of an error, its kind and RetryInfo in the trailing metadata."""
    code = GRPC_STATUS[error.kind]
    metadata: list[tuple[str, str | bytes]] = [(KIND_METADATA, error.kind.value)]
    if error.param is not None:
        metadata.append((PARAM_METADATA, error.param))
    if error.retry_after is not None:
        metadata.append((STATUS_DETAILS_METADATA, _retry_details(code, error)))
    return RpcStatus(code, error.message, tuple(metadata))


def from_rpc_error(error: grpc.aio.AioRpcError) -> MeshError:
    """The error that an upstream raised, or the nearest kind for a status of gRPC's own.

    The words of the latter are replaced by ours and logged, as they name addresses.
    """
    trailers = {key: value for key, value in error.trailing_metadata() or ()}
    kind = _KIND_OF_NAME.get(str(trailers.get(KIND_METADATA)))
    if kind is None:
        kind = _KIND_OF_STATUS.get(error.code(), ErrorKind.INTERNAL)
        logger.info("call failed", extra={"code": error.code().name, "error": error.details()})
        message = _OWN_WORDS[kind]
    else:
        message = error.details() or kind.value.replace("_", " ")
    param = trailers.get(PARAM_METADATA)
    return MeshError(
        kind,
        message,
        param=None if param is None else str(param),
        retry_after=_retry_after(trailers.get(STATUS_DETAILS_METADATA)),
    )


def _retry_details(code: grpc.StatusCode, error: MeshError) -> bytes:
    delay = duration_pb2.Duration()
    delay.FromMicroseconds(round((error.retry_after or 0) * 1e6))
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    number: int = code.value[0]
    status = status_pb2.Status(code=number, message=error.message, details=[detail])
    return bytes(status.SerializeToString())


def _retry_after(details: str | bytes | None) -> float | None:
    if not isinstance(details, bytes):
        return None
    info = error_details_pb2.RetryInfo()
    for detail in status_pb2.Status.FromString(details).details:
        if detail.Unpack(info):
            return float(info.retry_delay.ToMicroseconds() / 1e6)
    return None
