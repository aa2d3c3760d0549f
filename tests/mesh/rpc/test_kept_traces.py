"""Decisions about traces, passed on to peers that come and go."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio
import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from mesh.observability.recording.traces import Traces
from mesh.rpc import kept_traces
from mesh.rpc.channel import open_channel
from mesh.rpc.kept_traces import SERVICE, KeptTraces
from mesh.rpc.server import Servicer
from mesh.v1 import traces_pb2, traces_pb2_grpc
from tests.helpers import eventually, serve

pytestmark = [pytest.mark.timeout(30), pytest.mark.usefixtures("no_tasks_left")]


class Peer(traces_pb2_grpc.TraceServiceServicer):
    """Records the trace ids that it receives; does not answer while `slow`."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.slow = False

    async def KeepTraces(self, request: Any, context: Any) -> traces_pb2.KeepTracesResponse:
        self.received += request.trace_ids
        if self.slow:
            await asyncio.Event().wait()
        return traces_pb2.KeepTracesResponse()


def no_traces() -> Traces:
    return Traces([], Resource.get_empty(), InstrumentationScope("weir"))


async def test_a_channel_that_closes_does_not_end_the_passing_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Channels of replicas that a name no longer lists close at any time, also during a call."""
    monkeypatch.setattr(kept_traces, "BATCH_SECONDS", 0.01)
    traces, peer, channels = no_traces(), Peer(), list[grpc.aio.Channel]()
    num_batches = 0

    def present() -> list[grpc.aio.Channel]:
        nonlocal num_batches
        num_batches += 1
        return channels

    register = traces_pb2_grpc.add_TraceServiceServicer_to_server
    async with serve(Servicer(SERVICE, register, peer)) as served:
        async with KeptTraces(traces, present).running():
            peer.slow = True
            closing = open_channel(served.address)
            channels.append(closing)
            traces.on_kept(1)
            await eventually(lambda: len(peer.received) == 1, "the call runs")
            await closing.close()
            traces.on_kept(2)  # to the closed channel
            await eventually(lambda: num_batches == 2, "it cannot be sent")
            peer.slow = False
            channels[:] = [open_channel(served.address)]
            traces.on_kept(3)
            await eventually(lambda: len(peer.received) == 2, "the next decision arrives")
        await channels[0].close()
    assert peer.received == [(1).to_bytes(16), (3).to_bytes(16)]
