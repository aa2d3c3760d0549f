"""Anthropic's error format: its body, its types and its status 529.

All responses to requests for the Messages API's paths have it, also those that no endpoint sends.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from starlette.responses import Response

from gateway.http.errors import HttpError, error_headers
from gateway.http.json_text import encode
from gateway.keys.rate_limiter import KeyLimitReached
from gateway.streaming.sse import typed_frame
from mesh.context import current_request
from mesh.errors import HTTP_ERROR, ErrorKind, MeshError

PATH = "/v1/messages"

OVERLOADED = 529
"""Anthropic's status of an overloaded server; 429 is for the limits of one key."""

_TYPES: Mapping[int, str] = MappingProxyType(
    {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        413: "request_too_large",
        429: "rate_limit_error",
        503: "overloaded_error",
        504: "timeout_error",
        OVERLOADED: "overloaded_error",
    }
)


def is_for_messages(path: str) -> bool:
    """Whether the path is the Messages API's, known or not."""
    return path.startswith(PATH) and path[len(PATH) : len(PATH) + 1] in ("", "/")


def error_type(status: int) -> str:
    """Anthropic's error type for an HTTP status."""
    return _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")


def error_object(status: int, message: str, request_id: str | None) -> dict[str, object]:
    """The body of an error."""
    return {
        "type": "error",
        "error": {"type": error_type(status), "message": message},
        "request_id": request_id,
    }


def error_response(error: MeshError | HttpError) -> Response:
    """The response to a request that failed before its first byte."""
    status = _status(error)
    # A message may quote the client's input, lone surrogates included.
    body = encode(_body(error, status)).encode("utf-8", "replace")
    return Response(body, status, error_headers(error), media_type="application/json")


def error_frame(error: MeshError) -> bytes:
    """The last event of a stream that failed."""
    return typed_frame("error", _body(error, _status(error)))


def _body(error: MeshError | HttpError, status: int) -> dict[str, object]:
    request = current_request()
    return error_object(status, error.message, None if request is None else request.request_id)


def _status(error: MeshError | HttpError) -> int:
    if isinstance(error, HttpError):
        return error.status
    if error.kind is ErrorKind.OVERLOADED and not isinstance(error, KeyLimitReached):
        return OVERLOADED
    if error.kind is ErrorKind.CANCELLED:
        return 500  # ended by an operator: the client may retry
    return HTTP_ERROR[error.kind].status
