"""Reads the first message of a response stream without waiting for the initial metadata.

grpc.aio requests the first message only after the initial metadata has arrived, although servers
mostly send both together. The additional turn of gRPC's poller and of the event loop costs a
twentieth of the time to the first token, at each hop. gRPC's synchronous API does not wait either:
the core holds the message until it has delivered the metadata.
"""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

import grpc.aio

Response = TypeVar("Response")


async def read_first(call: grpc.aio.UnaryStreamCall[Any, Response]) -> Response | object:
    """Like `call.read()`, for the first message: returns a message or EOF, raises the same."""
    # Private attributes; without them the fallback is a little slower.
    core = getattr(call, "_cython_call", None)
    receive = getattr(core, "receive_serialized_message", None)
    deserialise = getattr(call, "_response_deserializer", None)
    if receive is None or deserialise is None:
        return await call.read()
    await asyncio.sleep(0)  # lets the call's task send the request
    try:
        message = await receive()
    except asyncio.CancelledError:
        call.cancel()
        raise
    # At the end of the stream, `read` raises the call's failure.
    return await call.read() if message is grpc.aio.EOF else deserialise(message)
