"""Passes decisions about traces on, from the service that decides to those that hold spans."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext

import grpc
import grpc.aio

from mesh.observability import telemetry
from mesh.observability.recording.traces import Traces
from mesh.rpc.server import Servicer
from mesh.v1 import traces_pb2, traces_pb2_grpc

logger = logging.getLogger(__name__)

SERVICE = traces_pb2.DESCRIPTOR.services_by_name["TraceService"].full_name

BATCH_SECONDS = 0.2
"""Decisions of this time are sent in one call to each peer."""

CALL_SECONDS = 2.0
"""Time limit of a call; a peer that is lost loses its part of the traces."""

MAX_PENDING = 1_000
"""Decisions that wait to be sent; more than the recorder makes in a batch."""

Channels = Callable[[], Iterable[grpc.aio.Channel]]


class KeptTraces(traces_pb2_grpc.TraceServiceServicer):
    """Keeps the traces that a caller names, and passes all decisions on to the called services."""

    def __init__(self, traces: Traces, channels: Channels = tuple) -> None:
        """`channels` gives the channels to the present peers."""
        self._traces = traces
        self._channels = channels
        self._pending: deque[bytes] = deque(maxlen=MAX_PENDING)
        self._waiting = asyncio.Event()

    @property
    def servicer(self) -> Servicer:
        """The service to register with a server."""
        return Servicer(SERVICE, traces_pb2_grpc.add_TraceServiceServicer_to_server, self)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[KeptTraces]:
        """Passes decisions on inside the block, and those that are left at its end."""
        loop = asyncio.get_running_loop()
        # Spans may end in any thread.
        self._traces.on_kept = lambda trace_id: loop.call_soon_threadsafe(
            self._add, trace_id.to_bytes(16)
        )
        sending = asyncio.create_task(self._run(), name="pass on kept traces")
        try:
            yield self
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            await self._send()
            self._traces.on_kept = lambda trace_id: None

    async def KeepTraces(
        self,
        request: traces_pb2.KeepTracesRequest,
        context: grpc.aio.ServicerContext[traces_pb2.KeepTracesRequest, object],
    ) -> traces_pb2.KeepTracesResponse:
        """Export the held spans of these traces."""
        for trace_id in request.trace_ids[:MAX_PENDING]:
            self._traces.keep(int.from_bytes(trace_id[:16]))
            self._add(trace_id[:16])
        return traces_pb2.KeepTracesResponse()

    def _add(self, trace_id: bytes) -> None:
        self._pending.append(trace_id)
        self._waiting.set()

    async def _run(self) -> None:
        while True:
            await self._waiting.wait()
            await asyncio.sleep(BATCH_SECONDS)
            await self._send()

    async def _send(self) -> None:
        self._waiting.clear()
        trace_ids = list(self._pending)
        self._pending.clear()
        if not trace_ids:
            return
        request = traces_pb2.KeepTracesRequest(trace_ids=trace_ids)
        calls = [_keep(channel, request) for channel in self._channels()]
        # A channel that closes, as its peer is not needed any more, cancels its calls.
        await asyncio.gather(*calls, return_exceptions=True)


async def _keep(channel: grpc.aio.Channel, request: traces_pb2.KeepTracesRequest) -> None:
    try:
        await traces_pb2_grpc.TraceServiceStub(channel).KeepTraces(request, timeout=CALL_SECONDS)
    except grpc.aio.AioRpcError as error:
        # UNIMPLEMENTED: the peer exports no spans.
        if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
            logger.debug("kept traces not passed on", extra={"error": error.details()})


def passing_on(kept: KeptTraces | None) -> AbstractAsyncContextManager[object]:
    """Passes decisions on inside the block, if there are any."""
    return nullcontext() if kept is None else kept.running()


def kept_traces(channels: Channels = tuple) -> KeptTraces | None:
    """Of this process; None if it holds no spans."""
    traces = telemetry.kept_traces()
    return None if traces is None or not telemetry.holds else KeptTraces(traces, channels)
