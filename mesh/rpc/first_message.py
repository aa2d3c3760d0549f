"""The first message of a response stream, asked for as soon as the call is made.

grpc.aio asks for it once the initial metadata has come. A server that has something to say at
once sends both together, so between the two lies nothing but a turn of gRPC's poller and of the
event loop: a twentieth of the time to the first token, at each hop. gRPC's synchronous calls do
not wait either; its core keeps the message until it has told the metadata.
"""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

import grpc.aio

Response = TypeVar("Response")


async def read_first(call: grpc.aio.UnaryStreamCall[Any, Response]) -> Response | object:
    """What `call.read()` gives and raises, if nothing has been read before: a message, or EOF."""
    # Private, and there is no public way: without it the message comes a little later.
    core = getattr(call, "_cython_call", None)
    receive = getattr(core, "receive_serialized_message", None)
    deserialise = getattr(call, "_response_deserializer", None)
    if receive is None or deserialise is None:
        return await call.read()
    await asyncio.sleep(0)  # the call's own task sends the request first
    try:
        message = await receive()
    except asyncio.CancelledError:
        call.cancel()
        raise
    # Without a message: gRPC's own method knows how the call ended.
    return await call.read() if message is grpc.aio.EOF else deserialise(message)
