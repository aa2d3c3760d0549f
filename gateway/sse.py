"""Frames of server-sent events, as bytes. Line ends are LF."""

from __future__ import annotations

from gateway.json_text import encode_line

KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"
"""How OpenAI's streams end when all went well."""


def data_frame(value: object) -> bytes:
    """An event without a name."""
    return f"data: {encode_line(value)}\n\n".encode()


def named_frame(name: str, value: object) -> bytes:
    """An event with a name."""
    return f"event: {name}\ndata: {encode_line(value)}\n\n".encode()


def token_frame(text: str, position: int) -> bytes:
    """A token event of a search."""
    return (
        f"event: token\nid: {position}\n"
        f'data: {{"type":"token","token":{encode_line(text)},"position":{position}}}\n\n'
    ).encode()
