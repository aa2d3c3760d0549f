"""Responses of the connection itself to requests that never reach the application."""

from __future__ import annotations

import json
from typing import NamedTuple

from httptools import (
    HttpParserError,
    HttpParserInvalidMethodError,
    HttpParserInvalidURLError,
)
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from gateway.anthropic.errors import error_object, is_for_messages
from gateway.connection.limits import MAX_HEADER_BYTES, MAX_NUM_HEADERS, MAX_UNREAD_BYTES

HEADER_TIMEOUT_SECONDS = 10.0
"""Time from the connection, or a later request's first byte, to the end of the headers."""


MAX_NAME_CHARACTERS = 80
"""Characters of a header's name that a message quotes."""


class Refusal(NamedTuple):
    """A status with the gateway's error body."""

    status: int
    code: str
    message: str

    def response(self, url: bytes = b"") -> bytes:
        """The whole response; it ends the connection. `url`: the request's, as far as known."""
        body = json.dumps(self._body(url), separators=(",", ":")).encode()
        return (
            STATUS_LINE[self.status]
            + b"content-type: application/json\r\nconnection: close\r\n"
            + b"content-length: %d\r\n\r\n" % len(body)
            + body
        )

    def _body(self, url: bytes) -> dict[str, object]:
        if is_for_messages(url.partition(b"?")[0].decode("latin-1")):
            return error_object(self.status, self.message, None)
        fields = {
            "message": self.message,
            "type": "invalid_request_error",
            "param": None,
            "code": self.code,
        }
        return {"error": fields}


NOT_HTTP = Refusal(400, "bad_request", "this is not an HTTP request")
BAD_TARGET = Refusal(
    400, "bad_request", "the request target must be a URL in ASCII; percent-encode other characters"
)
NO_TUNNELS = Refusal(400, "bad_request", "this server is not a proxy: CONNECT is not supported")
ONE_HOST = Refusal(400, "bad_request", "an HTTP/1.1 request must have exactly one Host header")
SLOW_HEADERS = Refusal(
    408, "request_timeout", f"the headers must arrive within {HEADER_TIMEOUT_SECONDS:g} seconds"
)
UNREAD_BODY = Refusal(
    413,
    "request_too_large",
    f"the body of a request that takes none must be at most {MAX_UNREAD_BYTES} bytes",
)
TOO_PIPELINED = Refusal(400, "bad_request", "too many requests wait for earlier responses")
LARGE_HEADERS = Refusal(
    431,
    "headers_too_large",
    f"request line and headers must be at most {MAX_HEADER_BYTES} bytes "
    f"and {MAX_NUM_HEADERS} headers",
)
LARGE_FRAMING = Refusal(
    431,
    "headers_too_large",
    f"chunk extensions and trailers must be at most {MAX_HEADER_BYTES} bytes "
    f"and {MAX_NUM_HEADERS} trailers",
)
ONLY_CHUNKED = Refusal(501, "unimplemented", "Transfer-Encoding must be chunked")
BAD_VERSION = Refusal(505, "http_version_not_supported", "the version must be HTTP/1.1 or HTTP/1.0")


class Refused(Exception):
    """Raised in a parser's callback; stops the parser."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


_BAD_FRAMING = {
    "Duplicate Content-Length": "Content-Length must be given once",
    "Invalid character in Content-Length": "Content-Length must be a decimal number",
    "Empty Content-Length": "Content-Length must be a decimal number, given none",
    "Content-Length overflow": "Content-Length must be less than 2^64",
    "Content-Length can't be present with Transfer-Encoding": (
        "Content-Length and Transfer-Encoding must not be given together"
    ),
    "Transfer-Encoding can't be present with Content-Length": (
        "Content-Length and Transfer-Encoding must not be given together"
    ),
    "Invalid `Transfer-Encoding` header value": "Transfer-Encoding must be chunked",
    "Invalid character in chunk size": "the size of a chunk must be a hexadecimal number",
    "Expected LF after chunk data": "a chunk must be as long as its size, and end with CRLF",
}
"""Messages by llhttp's reasons."""

_BAD_HEADERS = {
    "Invalid header token": "must have a name of letters, digits and hyphens, and a colon",
    "Invalid header field char": "must have a name of letters, digits and hyphens, and a colon",
    "Invalid header value char": "must have no control characters in its value, and no line end",
    "Unexpected whitespace after header value": "must be on one line: folding is obsolete",
    "Missing expected CR after header value": "must end with CRLF",
}
"""The same for an error in a header, which llhttp does not name."""

BAD_METHOD = Refusal(
    400,
    "bad_request",
    "this is not HTTP: a request must begin with one of HTTP's methods in capitals, such as GET",
)


def refusal_of(error: HttpParserError, previous_header: bytes | None) -> Refusal:
    """The refusal for a parser's error; an exception of a callback is its context.

    `previous_header` is the name of the header before the error, None if there is none.
    """
    cause = error.__context__
    if isinstance(cause, Refused):
        return cause.refusal
    if isinstance(error, HttpParserInvalidURLError) or isinstance(cause, HttpParserInvalidURLError):
        return BAD_TARGET
    reason = str(error.args[0]) if error.args else ""
    if reason in _BAD_FRAMING:
        return Refusal(400, "bad_request", _BAD_FRAMING[reason])
    if reason in _BAD_HEADERS:
        place = (
            "first header" if previous_header is None else f"header after {_name(previous_header)}"
        )
        return Refusal(400, "bad_request", f"the {place} {_BAD_HEADERS[reason]}")
    if isinstance(error, HttpParserInvalidMethodError):
        return BAD_METHOD
    return BAD_VERSION if reason == "Invalid HTTP version" else NOT_HTTP


def _name(header: bytes) -> str:
    return header[:MAX_NAME_CHARACTERS].decode("ascii", "replace")
