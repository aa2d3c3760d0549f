"""JSON as text, safe inside of a server-sent event."""

from __future__ import annotations

import json

from pydantic_core import to_json
from starlette.responses import Response

encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
"""Compact JSON. ValueError for NaN and infinities, which JSON does not have."""

# No line ends to the specification of server-sent events, but to str.splitlines, which clients
# read lines with. Every other such character is a control character that JSON escapes anyway.
_LINE_ENDS = {"\u2028": "\\u2028", "\u2029": "\\u2029", "\x85": "\\u0085"}


def encode_line(value: object) -> str:
    """Compact JSON on one line, whatever a client takes for a line end; no number is null."""
    text = to_json(value, inf_nan_mode="null").decode()
    if not text.isascii():
        # These characters occur inside of strings only, where an escape may stand for them.
        for character, escape in _LINE_ENDS.items():
            if character in text:
                text = text.replace(character, escape)
    return text


def json_response(value: object, status: int = 200) -> Response:
    """An answer in JSON."""
    return Response(encode(value).encode(), status, media_type="application/json")
