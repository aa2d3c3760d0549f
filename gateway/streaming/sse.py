"""Frames of server-sent events, as bytes. Line ends are LF."""

from __future__ import annotations

from gateway.http.json_text import encode_line

KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"
"""How OpenAI's streams end when all went well."""


def data_frame(value: object) -> bytes:
    """An event without a name."""
    return f"data: {encode_line(value)}\n\n".encode()


def named_frame(name: str, value: object, event_id: str, retry: int | None = None) -> bytes:
    """An event with a name and an id; `retry` is how long a client waits to reconnect, in ms."""
    wait = "" if retry is None else f"retry: {retry}\n"
    return f"event: {name}\ndata: {encode_line(value)}\nid: {event_id}\n{wait}\n".encode()


def token_frame(text: str, position: int, id_prefix: str = "") -> bytes:
    """A token event of a search; its id is its position behind `id_prefix`."""
    return (
        f"event: token\nid: {id_prefix}{position}\n"
        f'data: {{"type":"token","token":{encode_line(text)},"position":{position}}}\n\n'
    ).encode()
