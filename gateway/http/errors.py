"""HTTP errors: statuses that have no ErrorKind, and OpenAI's error body for all failures.

HttpError(status, message)     404 route, 405 method, 408, 413, 415
MeshError(kind, message)       everything else, by the table in mesh.errors
ClientDisconnected             the client disconnected; no response is sent
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from starlette.responses import Response

from gateway.http.headers import RETRY_AFTER
from gateway.http.json_text import encode
from mesh.errors import HTTP_ERROR, MAX_MESSAGE_BYTES, ErrorKind, MeshError, truncated

DEFAULT_RETRY_SECONDS = 1.0
"""`Retry-After` in seconds for a refusal without a delay."""

CLIENT_CLOSED_REQUEST = 499
"""Status in logs and metrics of a request whose client disconnected (as in nginx)."""

_RETRIED = (ErrorKind.OVERLOADED, ErrorKind.UNAVAILABLE)


class ClientDisconnected(Exception):
    """The client disconnected before its response was complete."""


class HttpError(Exception):
    """A failure of HTTP itself, which no `ErrorKind` of MeshError describes."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status = status
        self.message = truncated(message, MAX_MESSAGE_BYTES)
        super().__init__(self.message)
        self.code = code
        self.param = param
        self.headers = dict(headers or {})


def error_body(error: MeshError | HttpError) -> dict[str, object]:
    """OpenAI's error body."""
    fields: dict[str, object] = {"message": error.message}
    if isinstance(error, HttpError):
        fields |= {"type": "invalid_request_error", "param": error.param, "code": error.code}
    else:
        _, type_, code = HTTP_ERROR[error.kind]
        fields |= {"type": type_, "param": error.param, "code": code}
    return {"error": fields}


def error_response(error: MeshError | HttpError) -> Response:
    """The response to a request that failed before its first byte."""
    status = error.status if isinstance(error, HttpError) else HTTP_ERROR[error.kind].status
    # A message may quote the client's input, lone surrogates included.
    body = encode(error_body(error)).encode("utf-8", "replace")
    return Response(body, status, error_headers(error), media_type="application/json")


def error_headers(error: MeshError | HttpError) -> dict[str, str]:
    """Headers of the response to a request that failed, such as `Retry-After`."""
    if isinstance(error, HttpError):
        return error.headers
    if error.kind is ErrorKind.UNAUTHENTICATED:
        return {"www-authenticate": "Bearer"}
    if error.retry_after is None and error.kind not in _RETRIED:
        return {}
    seconds = DEFAULT_RETRY_SECONDS if error.retry_after is None else error.retry_after
    return {RETRY_AFTER: str(max(1, math.ceil(seconds)))}
