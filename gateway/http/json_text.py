"""JSON encoding that is safe in a server-sent event."""

from __future__ import annotations

import json

from pydantic_core import to_json
from starlette.responses import Response

encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
"""Encodes compact JSON. Raises ValueError for NaN and infinities."""

# These characters do not end a line in server-sent events, but in str.splitlines, which clients
# use. All other line separators are control characters, which JSON escapes.
_LINE_ENDS = {"\u2028": "\\u2028", "\u2029": "\\u2029", "\x85": "\\u0085"}


def encode_line(value: object) -> str:
    """Encode compact JSON without any character that a client may take for a line end."""
    text = to_json(value, inf_nan_mode="null").decode()
    if not text.isascii():
        # These characters occur in strings only, so they can be escaped.
        for character, escape in _LINE_ENDS.items():
            if character in text:
                text = text.replace(character, escape)
    return text


def json_response(value: object, status: int = 200) -> Response:
    """A JSON response."""
    return encoded_response(encode(value), status)


def encoded_response(text: str, status: int = 200) -> Response:
    """A response of text that is JSON."""
    return Response(text.encode(), status, media_type="application/json")
