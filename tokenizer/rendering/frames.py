"""Messages between the service and its worker processes: a length, a kind and bytes."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

_HEAD = struct.Struct("!IB")
_PART_BYTES = 1 << 20


class Kind(Enum):
    """What a frame contains."""

    START = 1
    """To the supervisor: the model's PromptFormat and the limits of a worker."""
    FORK = 2
    """To the supervisor: start a worker. The reply contains its socket and its process id."""
    END = 3
    """To the supervisor: end a worker, given its process id. The reply is its wait status."""
    FIND_CAPABILITIES = 4
    """To a worker: examine the templates."""
    RENDER = 5
    """To a worker: capabilities and conversation."""
    RESULT = 6
    """A reply."""
    REFUSAL = 7
    """A reply: field and message of a RenderError."""


class Frame(NamedTuple):
    """One message."""

    kind: Kind
    content: bytes = b""


def _keep_waiting() -> None:
    """For sockets without a timeout."""


def send_frame(
    peer: socket.socket, frame: Frame, on_timeout: Callable[[], None] = _keep_waiting
) -> None:
    """Sends a frame. Whenever the socket times out, calls `on_timeout`, which may raise.

    Raises OSError if the peer has ended.
    """
    rest = memoryview(_HEAD.pack(len(frame.content), frame.kind.value) + frame.content)
    while rest:
        try:
            rest = rest[peer.send(rest) :]
        except TimeoutError:
            on_timeout()


def receive_frame(
    peer: socket.socket, max_bytes: int, on_timeout: Callable[[], None] = _keep_waiting
) -> Frame:
    """Receives a frame; calls `on_timeout` as `send_frame` does.

    Raises EOFError if the peer has ended, ValueError for a longer or an unknown frame.
    """
    length, kind = _HEAD.unpack(_receive(peer, _HEAD.size, on_timeout))
    if length > max_bytes:
        raise ValueError(f"a frame has {length} bytes, at most {max_bytes} are allowed")
    return Frame(Kind(kind), _receive(peer, length, on_timeout))


def _receive(peer: socket.socket, length: int, on_timeout: Callable[[], None]) -> bytes:
    received = bytearray()
    while len(received) < length:
        try:
            part = peer.recv(min(length - len(received), _PART_BYTES))
        except TimeoutError:
            on_timeout()
            continue
        except ConnectionResetError:
            part = b""
        if not part:
            raise EOFError
        received += part
    return bytes(received)
