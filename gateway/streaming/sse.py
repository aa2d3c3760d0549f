"""Encodes frames of server-sent events (WHATWG HTML, section 9.2)."""

from __future__ import annotations

from gateway.http.json_text import encode_line

EVENT_STREAM = "text/event-stream"
KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"
"""The end of a successful OpenAI stream."""


def data_frame(value: object) -> bytes:
    """Encode an event without a name."""
    return f"data: {encode_line(value)}\n\n".encode()


def typed_frame(name: str, value: object) -> bytes:
    """Encode an event with a name."""
    return f"event: {name}\ndata: {encode_line(value)}\n\n".encode()


def named_frame(name: str, value: object, event_id: str, retry: int | None = None) -> bytes:
    """Encode an event with a name and an id; `retry` is the reconnection time in ms."""
    wait = "" if retry is None else f"retry: {retry}\n"
    return f"event: {name}\ndata: {encode_line(value)}\nid: {event_id}\n{wait}\n".encode()


def token_frame(text: str, position: int, id_prefix: str = "") -> bytes:
    """Encode a token event of a search; its id is `id_prefix` and its position."""
    return (
        f"event: token\nid: {id_prefix}{position}\n"
        f'data: {{"type":"token","token":{encode_line(text)},"position":{position}}}\n\n'
    ).encode()
