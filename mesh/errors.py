"""The error type of all services, and its mapping to gRPC and HTTP.

    MeshError(kind, message, param, retry_after)

A service raises it. The server interceptor converts it to a gRPC status (`status_of`), the caller
converts that back to the same error (`from_rpc_error`), and the gateway to an HTTP response. The
kinds are also metric labels, so there are few of them and they are stable.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple

import grpc
import grpc.aio
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

logger = logging.getLogger("mesh.errors")

KIND_METADATA = "mesh-error-kind"
"""Trailing metadata with the kind: gRPC itself also raises some of the status codes."""

FINAL_METADATA = "mesh-error-final"
PARAM_METADATA = "mesh-error-param"
"""Trailing metadata with the name of the invalid request field."""

PARAM_BYTES_METADATA = "mesh-error-param-bin"
"""The same as UTF-8, for a name that is not ASCII."""

STATUS_DETAILS_METADATA = "grpc-status-details-bin"
"""Trailing metadata with google.rpc.Status, which contains RetryInfo."""

MAX_MESSAGE_BYTES = 1500
"""Limit of an error text: gRPC's metadata, where it is percent-encoded, has 8 KiB."""

MAX_PARAM_BYTES = 200

INTERNAL_MESSAGE = "internal error; the log has the details under this request id"


class ErrorKind(StrEnum):
    """Classes of failures that callers handle differently."""

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


class HttpStatus(NamedTuple):
    """The HTTP status of a kind, and `type` and `code` of OpenAI's error body."""

    status: int
    type: str
    code: str | None


HTTP_ERROR: Mapping[ErrorKind, HttpStatus] = MappingProxyType(
    {
        ErrorKind.INVALID_REQUEST: HttpStatus(400, "invalid_request_error", None),
        ErrorKind.CONTEXT_TOO_LONG: HttpStatus(
            400, "invalid_request_error", "context_length_exceeded"
        ),
        ErrorKind.UNAUTHENTICATED: HttpStatus(401, "authentication_error", "invalid_api_key"),
        ErrorKind.MODEL_NOT_FOUND: HttpStatus(404, "invalid_request_error", "model_not_found"),
        ErrorKind.OVERLOADED: HttpStatus(429, "rate_limit_error", "rate_limit_exceeded"),
        ErrorKind.UNAVAILABLE: HttpStatus(503, "server_error", "unavailable"),
        ErrorKind.DEADLINE: HttpStatus(504, "timeout_error", "deadline_exceeded"),
        ErrorKind.CANCELLED: HttpStatus(499, "cancelled", "cancelled"),
        ErrorKind.UNIMPLEMENTED: HttpStatus(501, "invalid_request_error", "unimplemented"),
        ErrorKind.INTERNAL: HttpStatus(500, "server_error", "internal_error"),
    }
)

# A status without a kind comes from gRPC itself or from a proxy. UNKNOWN is an unmapped exception;
# RESOURCE_EXHAUSTED is a message over the size limit.
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

# Replacements for gRPC's own messages, which contain addresses and must not reach clients.
_MESSAGE_OF_KIND: Mapping[ErrorKind, str] = MappingProxyType(
    {
        ErrorKind.INVALID_REQUEST: "a message to an upstream service was not accepted",
        ErrorKind.UNAUTHENTICATED: "an upstream service did not accept the credentials",
        ErrorKind.UNAVAILABLE: "an upstream service is unreachable",
        ErrorKind.DEADLINE: "the request exceeded its deadline",
        ErrorKind.CANCELLED: "the request was cancelled by an upstream service",
        ErrorKind.UNIMPLEMENTED: "an upstream service does not implement this call",
        ErrorKind.INTERNAL: INTERNAL_MESSAGE,
    }
)

_ELLIPSIS = "..."  # ASCII, because metadata values of gRPC are

_KIND_OF_NAME: Mapping[str, ErrorKind] = MappingProxyType({kind.value: kind for kind in ErrorKind})


class MeshError(Exception):
    """A failure that is reported to the caller; `message` is meant for clients, without secrets."""

    def __init__(
        self,
        kind: ErrorKind,
        message: str,
        *,
        param: str | None = None,
        retry_after: float | None = None,
        is_reported: bool = False,
        is_final: bool = False,
    ) -> None:
        """`param` names the invalid request field; `retry_after` is in seconds.

        `is_final`: another replica of the service that refuses would refuse as well.

        `is_reported`: an upstream service sent this error; False: it arose here, or gRPC raised it.
        Longer texts than `MAX_MESSAGE_BYTES` and `MAX_PARAM_BYTES` are truncated.
        """
        self.kind = kind
        self.message = truncated(message, MAX_MESSAGE_BYTES)
        self.param = None if param is None else truncated(param, MAX_PARAM_BYTES)
        super().__init__(self.message)
        self.retry_after = retry_after
        self.is_reported = is_reported
        self.is_final = is_final

    @property
    def for_the_log(self) -> str:
        """The message, or a substitute if it may quote the request, which must not be logged."""
        if self.kind is ErrorKind.INVALID_REQUEST:
            return f"{self.param or 'the request'} is not valid"
        return self.message

    def renamed(self, param: str | None) -> MeshError:
        """A copy whose invalid field is called `param`, also in the message.

        For callers whose own request names the field differently. Only at the message's beginning:
        the rest may quote the client. A message about the context length quotes nothing.
        """
        message = self.message
        if self.param and param and self.kind is ErrorKind.CONTEXT_TOO_LONG:
            message = re.sub(rf"(?<![\w.]){re.escape(self.param)}(?![\w\[])", param, message)
        elif self.param and param and message.startswith(self.param):
            message = param + message.removeprefix(self.param)
        return MeshError(
            self.kind,
            message,
            param=param,
            retry_after=self.retry_after,
            is_reported=self.is_reported,
            is_final=self.is_final,
        )

    def __repr__(self) -> str:
        return f"MeshError({self.kind.value}: {self.message})"


def invalid(param: str, message: str) -> MeshError:
    """The error for an invalid field; `message` has the field, the limit and the given value."""
    return MeshError(ErrorKind.INVALID_REQUEST, message, param=param)


def truncated(text: str, max_bytes: int) -> str:
    """Return `text` with at most `max_bytes` bytes of UTF-8; a longer one ends in three dots."""
    if 4 * len(text) <= max_bytes:
        return text  # the common case: a character has at most 4 bytes
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= max_bytes:
        return text
    return encoded[: max_bytes - len(_ELLIPSIS)].decode("utf-8", "ignore") + _ELLIPSIS


def context_too_long_message(limit: int, given: str) -> str:
    """The message for a prompt that exceeds a context of `limit` tokens; `given` is what was sent.

    It begins as OpenAI's, by which clients recognise it.
    """
    return f"This model's maximum context length is {limit} tokens. However, {given}"


class RpcStatus(NamedTuple):
    """The arguments of `context.abort`."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: tuple[tuple[str, str | bytes], ...]


def status_of(error: MeshError) -> RpcStatus:
    """The gRPC status of an error, with kind and RetryInfo in the trailing metadata."""
    code = GRPC_STATUS[error.kind]
    # A lone surrogate, as of a path that is not UTF-8, cannot be sent.
    message = error.message.encode("utf-8", "replace").decode()
    metadata: list[tuple[str, str | bytes]] = [(KIND_METADATA, error.kind.value)]
    if error.param is not None:
        # gRPC refuses other values than ASCII, unless the key ends in -bin.
        ascii_param = error.param.isascii() and error.param.isprintable()
        metadata.append(
            (PARAM_METADATA, error.param)
            if ascii_param
            else (PARAM_BYTES_METADATA, error.param.encode("utf-8", "replace"))
        )
    if error.is_final:
        metadata.append((FINAL_METADATA, "1"))
    if error.retry_after is not None:
        metadata.append((STATUS_DETAILS_METADATA, _retry_details(code, message, error.retry_after)))
    return RpcStatus(code, message, tuple(metadata))


def from_rpc_error(error: grpc.aio.AioRpcError) -> MeshError:
    """The error that the upstream raised, or the nearest kind for a status of gRPC itself.

    gRPC's own messages contain addresses, so they are logged and replaced.
    """
    trailers = {key: value for key, value in error.trailing_metadata() or ()}
    kind = _KIND_OF_NAME.get(str(trailers.get(KIND_METADATA)))
    is_reported = kind is not None
    if kind is None:
        kind = _KIND_OF_STATUS.get(error.code(), ErrorKind.INTERNAL)
        logger.info("call failed", extra={"code": error.code().name, "error": error.details()})
        message = _MESSAGE_OF_KIND[kind]
    else:
        message = error.details() or kind.value.replace("_", " ")
    param = trailers.get(PARAM_METADATA, trailers.get(PARAM_BYTES_METADATA))
    return MeshError(
        kind,
        message,
        param=param.decode("utf-8", "replace") if isinstance(param, bytes) else param,
        retry_after=_retry_after(trailers.get(STATUS_DETAILS_METADATA)),
        is_reported=is_reported,
        is_final=FINAL_METADATA in trailers,
    )


def _retry_details(code: grpc.StatusCode, message: str, retry_after: float) -> bytes:
    delay = duration_pb2.Duration()
    delay.FromMicroseconds(round(retry_after * 1e6))
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    number: int = code.value[0]
    status = status_pb2.Status(code=number, message=message, details=[detail])
    return bytes(status.SerializeToString())


def _retry_after(details: str | bytes | None) -> float | None:
    if not isinstance(details, bytes):
        return None
    info = error_details_pb2.RetryInfo()
    try:
        for detail in status_pb2.Status.FromString(details).details:
            if detail.Unpack(info):
                return float(info.retry_delay.ToMicroseconds() / 1e6)
    except DecodeError:
        pass  # from an engine or a proxy that is not Weir's: the status counts without them
    return None
