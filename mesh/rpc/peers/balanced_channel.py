"""A channel to all replicas of a service: each call goes to a ready one.

A call waits for a short time if none is ready, because a rollout may leave a gap between the old
replica and the first answer of the name service that has the new one. A call that a peer did not
answer is tried at another one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import grpc
import grpc.aio

from mesh.errors import ErrorKind, MeshError
from mesh.rpc.attempts import Attempts, PeersMethod
from mesh.rpc.peers.discovery import Discovery
from mesh.rpc.peers.health_watch import Health
from mesh.rpc.peers.peer import Peer
from mesh.rpc.peers.resolver import Resolve, resolve
from mesh.rpc.tls import NO_TLS, TlsFiles

logger = logging.getLogger("mesh.rpc.peers")

REFRESH_SECONDS = 5.0
"""Interval of the lookups while all known peers are ready."""

HOLD_SECONDS = 10.0
"""Time after the last peer was ready in which calls wait for the next one. Kubernetes removes a
gateway from its Service after 15 s without readiness."""

FORGET_SECONDS = 60.0
"""Time after which an unreachable address is dropped although the name service does not answer:
by then it may belong to another pod."""

MAX_ATTEMPTS = 3
"""Attempts of a call whose peers break the connection: the call may be the cause."""

_RETRIABLE = frozenset({ErrorKind.UNAVAILABLE, ErrorKind.CANCELLED, ErrorKind.INTERNAL})
"""Kinds of gRPC's own failures (not of errors that a service reports) after which another peer may
succeed."""


class BalancedChannel(grpc.aio.Channel):
    """Calls the ready peer with the fewest running calls. Inside `running` only.

    Stubs work as with any channel, but their methods must be called through `mesh.rpc.channel`.
    """

    def __init__(
        self,
        target: str,
        service: str,
        tls: TlsFiles = NO_TLS,
        *,
        refresh_seconds: float = REFRESH_SECONDS,
        hold_seconds: float = HOLD_SECONDS,
        resolve: Resolve = resolve,
    ) -> None:
        """`target`: HOST:PORT, several separated by commas; `service`: name in health checks.

        `hold_seconds`: see HOLD_SECONDS.
        """
        self.target = target
        self._service = service
        self._tls = tls
        self._hold_seconds = hold_seconds
        self._discovery = Discovery(target.split(","), refresh_seconds, resolve)
        self._peers: dict[str, Peer] = {}
        self._watching: dict[str, asyncio.Task[None]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._ready: list[Peer] = []
        self._last_ready = time.monotonic()
        self._turn = 0
        self._changed = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[BalancedChannel]:
        """Finds the peers and watches them inside the block."""
        finding = asyncio.create_task(
            self._discovery.run(self._reconcile, self._is_complete), name=f"find {self.target}"
        )
        self._last_ready = time.monotonic()
        try:
            yield self
        finally:
            tasks = [finding, *self._watching.values(), *self._closing]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._peers.clear()
            self._watching.clear()
            self._update()

    @property
    def is_ready(self) -> bool:
        """Whether a peer is ready now."""
        return bool(self._ready)

    @property
    def ready(self) -> Sequence[Peer]:
        """The peers that calls are sent to now."""
        return self._ready

    def channels(self) -> list[grpc.aio.Channel]:
        """The channels to all known peers, for calls to each of them."""
        return [peer.channel for peer in self._peers.values()]

    def next_change(self) -> asyncio.Event:
        """Set when a peer has become ready or has stopped being ready."""
        return self._changed

    def choose(self, avoided: Sequence[Peer] = ()) -> Peer | None:
        """The ready peer with the fewest running calls, in turn if there are several."""
        ready = self._ready
        if avoided:
            ready = [peer for peer in ready if peer not in avoided]
        if len(ready) < 2:
            return ready[0] if ready else None
        self._turn += 1
        begin = self._turn % len(ready)
        return min(ready[begin:] + ready[:begin], key=_load)

    async def wait_chosen(self, deadline: float | None, hold: bool) -> Peer:
        """A ready peer, which is awaited until `deadline` (monotonic time), if `hold`.

        After that a peer that answers, but is not ready: its error says why. Raises MeshError.
        """
        began = time.monotonic()
        until = self._last_ready + self._hold_seconds if hold else began
        until = until if deadline is None else min(until, deadline)
        self._discovery.hurry()
        while (peer := self.choose()) is None:
            left = until - time.monotonic()
            if left <= 0:
                break
            try:
                async with asyncio.timeout(left):
                    await self._changed.wait()
            except TimeoutError:
                continue
        if peer is not None:
            waited = time.monotonic() - began
            logger.debug("waited for a peer", extra={"target": self.target, "seconds": waited})
            return peer
        if deadline is not None and time.monotonic() >= deadline:
            raise MeshError(ErrorKind.DEADLINE, "the request exceeded its deadline")
        for peer in self._peers.values():
            if peer.health is Health.NOT_SERVING:
                return peer
        raise MeshError(ErrorKind.UNAVAILABLE, self._no_peer, retry_after=1.0)

    @property
    def _no_peer(self) -> str:
        return f"no {self._service.rpartition('.')[2].removesuffix('Service').lower()} is ready"

    def _reconcile(self) -> None:
        """Adds the peers of new addresses, and removes those that are not needed any more."""
        found = self._discovery.addresses
        for address, target in found.items():
            peer = self._peers.get(address)
            if peer is None:
                host = target.rpartition(":")[0].strip("[]")
                peer = Peer(address, self._service, self._on_change, self._tls, host)
                self._peers[address] = peer
                watching = asyncio.create_task(peer.watch(), name=f"watch {address}")
                self._watching[address] = watching
            peer.listed = True
        for address in self._peers.keys() - found.keys():
            self._peers[address].listed = False
        self._update()
        for address, peer in list(self._peers.items()):
            if self._is_over(peer):
                del self._peers[address]
                self._close(self._watching.pop(address))

    def _close(self, watching: asyncio.Task[None]) -> None:
        self._closing.add(watching)
        watching.add_done_callback(self._closing.discard)
        watching.cancel()

    def _is_over(self, peer: Peer) -> bool:
        if peer.num_active:
            return False  # its channel must stay open until the last stream has ended
        if not peer.listed:
            return peer not in self._ready
        unreachable = peer.health is Health.UNREACHABLE
        silent = time.monotonic() - peer.not_serving_since
        return self._discovery.failing and unreachable and silent > FORGET_SECONDS

    def _is_complete(self) -> bool:
        listed = [peer for peer in self._peers.values() if peer.listed]
        return bool(self._ready) and all(peer.serving for peer in listed)

    def _on_change(self, peer: Peer) -> None:
        if not peer.serving:
            self._discovery.hurry()
        self._update()

    def _update(self) -> None:
        if self._ready:
            self._last_ready = time.monotonic()
        serving = [peer for peer in self._peers.values() if peer.serving]
        # An address whose record has disappeared is better than none while it serves.
        ready = [peer for peer in serving if peer.listed] or serving
        if ready != self._ready:
            self._ready = ready
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return BalancedMethod(self, "unary_unary", method, args, kwargs)

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return BalancedMethod(self, "unary_stream", method, args, kwargs)

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return BalancedMethod(self, "stream_unary", method, args, kwargs)

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return BalancedMethod(self, "stream_stream", method, args, kwargs)

    async def close(self, grace: float | None = None) -> None:
        """Does nothing: leaving `running` closes the channels."""

    async def __aenter__(self) -> BalancedChannel:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        ready = grpc.ChannelConnectivity.READY
        return ready if self.is_ready else grpc.ChannelConnectivity.TRANSIENT_FAILURE

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        while self.get_state() is last_observed_state:
            await self._changed.wait()

    async def channel_ready(self) -> None:
        while not self.is_ready:
            await self._changed.wait()


def _load(peer: Peer) -> int:
    return peer.num_active


class BalancedMethod(PeersMethod):
    """A method of the service, at any peer."""

    def __init__(
        self,
        channel: BalancedChannel,
        kind: str,
        path: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        names = ("request_serializer", "response_deserializer")
        self._kind = kind
        self._path = path
        self._arguments = {**dict(zip(names, args, strict=False)), **kwargs}
        # As in grpc.aio's callables.
        self._method = path.encode()
        self._channel = channel

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError("call it with mesh.rpc.channel, which chooses a peer")

    def at(self, peer: Peer) -> Any:
        """The method's callable at a peer."""
        return peer.method(self._kind, self._path, self._arguments)

    def attempts(self, timeout: float | None, *, hold: bool) -> BalancedAttempts:
        return BalancedAttempts(self, self._channel, timeout, hold)


class BalancedAttempts(Attempts):
    """The attempts of one call."""

    __slots__ = (
        "_channel",
        "_deadline",
        "_hold",
        "_last_resort",
        "_method",
        "_num_broken",
        "_peer",
        "_refused",
    )

    def __init__(
        self, method: BalancedMethod, channel: BalancedChannel, timeout: float | None, hold: bool
    ) -> None:
        self._method = method
        self._hold = hold
        self._channel = channel
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._peer: Peer | None = None
        self._last_resort = False
        """Whether the peer was chosen although it was not ready, for its error."""
        self._num_broken = 0
        self._refused: list[Peer] = []
        """Peers that are ready, but report that they cannot serve this call."""

    async def next(self) -> Any:
        peer = self._channel.choose(self._refused)
        if peer is None:
            peer = await self._channel.wait_chosen(self._deadline, self._hold)
            self._last_resort = not peer.serving
        self._peer = peer
        peer.num_active += 1
        return self._method.at(peer)

    async def failed(self, error: MeshError) -> None:
        peer = self._peer
        assert peer is not None, "failed() without next()"
        self.end()
        if self._last_resort or error.is_final:
            raise error
        if error.kind is ErrorKind.UNAVAILABLE and error.is_reported:
            if await peer.confirm():
                # It serves, but lacks what this call needs. Another one may have it.
                self._refused.append(peer)
                if self._channel.choose(self._refused) is None:
                    raise error
            return
        if error.kind not in _RETRIABLE or error.is_reported:
            raise error
        peer.suspect()
        self._num_broken += 1
        if self._num_broken >= MAX_ATTEMPTS:
            raise error

    def timeout(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def end(self) -> None:
        if self._peer is not None:
            self._peer.num_active -= 1
            self._peer = None
