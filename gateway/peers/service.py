"""The gateway as other gateways see it."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Sequence
from contextlib import aclosing, contextmanager
from functools import partial
from typing import Any

from gateway.http.drain import Drain
from gateway.http.errors import HttpError
from gateway.keys.rate_limiter import KeyUsage
from gateway.keys.shared_usage import SharedUsage
from gateway.streaming.resumable_streams import Place, ResumableStreams
from mesh.errors import ErrorKind, MeshError
from mesh.rpc.server import Servicer
from mesh.v1 import gateway_pb2, gateway_pb2_grpc

SERVICE = "mesh.v1.GatewayService"

MAX_WATCHERS = 256
MAX_WATCHERS_PER_HOST = 64
"""Most calls of `WatchKeyUsage`, in all and from one address; each costs time with each request."""

WATCH_AGAIN_SECONDS = 10.0

KEYS_PER_MESSAGE = 1000


class GatewayService(gateway_pb2_grpc.GatewayServiceServicer):
    """Serves what this gateway knows; a request's key is that of its metadata."""

    def __init__(
        self,
        usage: SharedUsage,
        streams: ResumableStreams,
        drain: Drain,
        on_caller: Callable[[], None],
        names: Collection[str] = (),
    ) -> None:
        """`on_caller` is called when another gateway connects.

        `names` are those of the gateways' certificates, which callers must have one of; none: the
        certificates of callers are not checked.
        """
        self._names = [name.lower() for name in names]
        self._watchers: Counter[str] = Counter()
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
        self._check_caller(context)
        with self._watching(context.peer().rpartition(":")[0]):
            self._on_caller()
            async with aclosing(self._usage.reports()) as reports:
                async for usages in reports:
                    for response in self._messages(usages):
                        yield response

    @contextmanager
    def _watching(self, host: str) -> Iterator[None]:
        """Count a watcher while the block runs. Raises MeshError (OVERLOADED)."""
        watchers = self._watchers
        if watchers.total() >= MAX_WATCHERS or watchers[host] >= MAX_WATCHERS_PER_HOST:
            limit = f"{MAX_WATCHERS} callers, {MAX_WATCHERS_PER_HOST} of one address"
            message = f"at most {limit}, may follow the use of keys"
            raise MeshError(ErrorKind.OVERLOADED, message, retry_after=WATCH_AGAIN_SECONDS)
        watchers[host] += 1
        try:
            yield
        finally:
            watchers[host] -= 1
            if not watchers[host]:
                del watchers[host]

    def _messages(self, usages: Sequence[KeyUsage]) -> Iterator[gateway_pb2.WatchKeyUsageResponse]:
        for begin in range(0, max(1, len(usages)), KEYS_PER_MESSAGE):
            end = begin + KEYS_PER_MESSAGE
            yield gateway_pb2.WatchKeyUsageResponse(
                instance=self._streams.instance,
                keys=[gateway_pb2.KeyUsage(**usage._asdict()) for usage in usages[begin:end]],
                more=end < len(usages),
            )

    async def ResumeStream(
        self, request: gateway_pb2.ResumeStreamRequest, context: Any
    ) -> AsyncGenerator[gateway_pb2.ResumeStreamResponse]:
        """The frames of a stream of this gateway."""
        self._check_caller(context)
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
        self._check_caller(context)
        found = self._streams.stop_here(request.stream)
        return gateway_pb2.StopStreamResponse(found=found)

    def _check_caller(self, context: Any) -> None:
        """Raises MeshError unless it is a gateway: other services have certificates too."""
        if not self._names:
            return
        given = context.auth_context().get("x509_subject_alternative_name", ())
        for each in given:
            if any(_covers(each.decode(errors="replace").lower(), name) for name in self._names):
                return
        message = "the caller's certificate has no name of the gateways"
        raise MeshError(ErrorKind.UNAUTHENTICATED, message)


def _covers(given: str, name: str) -> bool:
    """Whether a name of a certificate, which may begin with `*.`, is valid for `name`."""
    if given.startswith("*."):
        return name.partition(".")[2] == given[2:]
    return given == name
