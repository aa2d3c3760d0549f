"""The gateway as other gateways see it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial
from typing import Any

from gateway.http.drain import Drain
from gateway.http.errors import HttpError
from gateway.keys.shared_usage import SharedUsage
from gateway.streaming.resumable_streams import Place, ResumableStreams
from mesh.rpc.server import Servicer
from mesh.v1 import gateway_pb2, gateway_pb2_grpc

SERVICE = "mesh.v1.GatewayService"


class GatewayService(gateway_pb2_grpc.GatewayServiceServicer):
    """Serves what this gateway knows; a request's key is that of its metadata."""

    def __init__(
        self,
        usage: SharedUsage,
        streams: ResumableStreams,
        drain: Drain,
        on_caller: Callable[[], None],
    ) -> None:
        """`on_caller` is called when another gateway connects."""
        self._usage = usage
        self._streams = streams
        self._drain = drain
        self._on_caller = on_caller

    @property
    def servicer(self) -> Servicer:
        """The registration of this service."""
        return Servicer(SERVICE, gateway_pb2_grpc.add_GatewayServiceServicer_to_server, self)

    async def WatchKeyUsage(
        self, request: gateway_pb2.WatchKeyUsageRequest, context: Any
    ) -> AsyncGenerator[gateway_pb2.WatchKeyUsageResponse]:
        """The use of keys, until the caller disconnects."""
        self._on_caller()
        async with aclosing(self._usage.reports()) as reports:
            async for usages in reports:
                yield gateway_pb2.WatchKeyUsageResponse(
                    instance=self._streams.instance,
                    keys=[gateway_pb2.KeyUsage(**usage._asdict()) for usage in usages],
                )

    async def ResumeStream(
        self, request: gateway_pb2.ResumeStreamRequest, context: Any
    ) -> AsyncGenerator[gateway_pb2.ResumeStreamResponse]:
        """The frames of a stream of this gateway."""
        place = Place(request.stream, request.begin, is_last=False)
        try:
            frames = self._streams.resume_here(place)
        except HttpError:
            yield gateway_pb2.ResumeStreamResponse(found=False)
            return
        # A gateway that drains waits for readers elsewhere as for its own.
        with self._drain.waiting(partial(self._streams.cut_off, request.stream)):
            async with aclosing(frames):
                yield gateway_pb2.ResumeStreamResponse(found=True)
                async for frame in frames:
                    yield gateway_pb2.ResumeStreamResponse(found=True, frame=frame)

    async def StopStream(
        self, request: gateway_pb2.StopStreamRequest, context: Any
    ) -> gateway_pb2.StopStreamResponse:
        """End a stream of this gateway."""
        found = self._streams.stop_here(request.stream)
        return gateway_pb2.StopStreamResponse(found=found)
