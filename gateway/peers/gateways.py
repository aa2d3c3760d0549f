"""The client of the other gateways, which it finds by DNS."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import grpc.aio

from gateway.keys.rate_limiter import KeyUsage
from gateway.keys.shared_usage import SharedUsage
from gateway.observability import metrics
from gateway.streaming.resumable_streams import Place, is_instance, stream_gone
from mesh.errors import MeshError
from mesh.rpc.channel import call_unary, open_channel, open_stream
from mesh.rpc.peers.discovery import Discovery
from mesh.rpc.peers.resolver import Resolve, resolve
from mesh.rpc.tls import NO_TLS, TlsFiles
from mesh.v1 import gateway_pb2, gateway_pb2_grpc

logger = logging.getLogger("gateway.peers")

RETRY_SECONDS = 0.5
"""Delay before a gateway whose reports have ended is called again."""

DUPLICATE_SECONDS = 10.0
"""The same, for one whose reports cannot be used, as it is known by another address."""

READ_SECONDS = 0.01
"""Least time between two reports that are read of one gateway, which sends them more slowly."""

MAX_KEYS = 65_536
"""Most keys in one report."""

MAX_RESPONSE_BYTES = 4 * 1024 * 1024
"""Limit of a message from another gateway: what is read of one is parsed at once."""

STOP_SECONDS = 2.0
"""Timeout of the call that stops a stream elsewhere."""


class _UnusableReport(Exception):
    """A report that no gateway sends; the message has the reason."""


class _Gateway:
    """Another gateway, or this one, as long as that is not known."""

    def __init__(self, address: str, channel: grpc.aio.Channel) -> None:
        self.address = address
        self.channel = channel
        self.stub: gateway_pb2_grpc.GatewayServiceAsyncStub
        self.stub = gateway_pb2_grpc.GatewayServiceStub(channel)
        self.instance = ""
        """Empty while it is not connected."""
        self.is_this = False
        """Whether it is known to be this gateway."""
        self.problem = ""
        """Why its reports are not used."""


class OtherGateways:
    """Follows the use of keys at the other gateways, and reads streams of theirs."""

    def __init__(
        self,
        target: str,
        instance: str,
        usage: SharedUsage,
        refresh_seconds: float,
        tls: TlsFiles = NO_TLS,
        resolve: Resolve = resolve,
    ) -> None:
        """`target`: HOST:PORT of all gateways, several separated by commas; empty: none.

        `instance` is this gateway's identity, which may be found among them.
        """
        self._instance = instance
        self._usage = usage
        self._tls = tls
        self._discovery = Discovery(target.split(",") if target else [], refresh_seconds, resolve)
        self._gateways: dict[str, _Gateway] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Finds and follows the gateways inside the block."""
        finding = asyncio.create_task(
            self._discovery.run(self._reconcile, self._is_complete), name="find gateways"
        )
        try:
            yield
        finally:
            finding.cancel()
            await asyncio.gather(finding, return_exceptions=True)
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def num_connected(self) -> int:
        """Number of the other gateways whose use of keys is known."""
        return sum(bool(each.instance) for each in self._gateways.values())

    def look_up(self) -> None:
        """Look for gateways now: an unknown one has called."""
        self._discovery.hurry()

    async def resume(self, instance: str, place: Place) -> AsyncGenerator[bytes]:
        """The frames after `place` of a stream of the gateway `instance`.

        Raises HttpError (410) if it cannot be resumed, and MeshError.
        """
        gateway = self._find(instance)
        if gateway is None:
            raise stream_gone()
        request = gateway_pb2.ResumeStreamRequest(stream=place.stream, begin=place.begin)
        async with open_stream(gateway.stub.ResumeStream, request) as responses:
            async for response in responses:
                if not response.found:
                    raise stream_gone()
                if response.frame:
                    yield response.frame

    async def stop(self, instance: str, stream: str) -> bool:
        """End a stream of the gateway `instance`; False if it does not exist. Raises MeshError."""
        gateway = self._find(instance)
        if gateway is None:
            return False
        request = gateway_pb2.StopStreamRequest(stream=stream)
        return (await call_unary(gateway.stub.StopStream, request, STOP_SECONDS)).found

    def _find(self, instance: str) -> _Gateway | None:
        known = (each for each in self._gateways.values() if each.instance == instance)
        return next(known, None) if instance else None

    def _reconcile(self) -> None:
        found = self._discovery.addresses
        for address, target in found.items():
            if address not in self._tasks:
                name = target.rpartition(":")[0].strip("[]")
                channel = open_channel(
                    address, self._tls, name, max_response_bytes=MAX_RESPONSE_BYTES
                )
                gateway = _Gateway(address, channel)
                self._gateways[address] = gateway
                self._tasks[address] = asyncio.create_task(
                    self._follow(gateway), name=f"follow gateway {address}"
                )
        for address in self._tasks.keys() - found.keys():
            # One that still reports is used until it ends.
            if not self._gateways[address].instance:
                self._tasks.pop(address).cancel()

    def _is_complete(self) -> bool:
        gateways = self._gateways.values()
        return all(each.instance or each.is_this or each.problem for each in gateways)

    async def _follow(self, gateway: _Gateway) -> None:
        try:
            while True:
                await self._read_reports(gateway)
                if gateway.is_this:
                    # Its address remains known, so that it is not followed again.
                    await asyncio.Event().wait()
                await asyncio.sleep(DUPLICATE_SECONDS if gateway.problem else RETRY_SECONDS)
        finally:
            self._gateways.pop(gateway.address, None)
            await gateway.channel.close()

    async def _read_reports(self, gateway: _Gateway) -> None:
        """Read the reports of a gateway until it disconnects, or is found to be this one."""
        request = gateway_pb2.WatchKeyUsageRequest()
        # Pods that start are listed too: a call would fail, and be logged, every half second.
        await gateway.channel.channel_ready()
        try:
            async with open_stream(gateway.stub.WatchKeyUsage, request) as responses:
                async for response in responses:
                    if response.instance == self._instance:
                        gateway.is_this = True
                        return
                    self._received(gateway, response)
                    await asyncio.sleep(READ_SECONDS)
        except _UnusableReport as error:
            if gateway.problem != str(error):
                gateway.problem = str(error)
                fields = {"address": gateway.address, "reason": gateway.problem}
                logger.warning("reports of a gateway not used", extra=fields)
        except MeshError as error:
            logger.debug("reports ended", extra={"address": gateway.address, "error": str(error)})
        except Exception:
            # The gateway must be followed again, or its use of keys would not count any more.
            logger.exception("unexpected error in reports", extra={"address": gateway.address})
        finally:
            gateway.instance = ""
            self._usage.forget(gateway.address)
            metrics.GATEWAYS_CONNECTED.set(self.num_connected)

    def _received(self, gateway: _Gateway, response: gateway_pb2.WatchKeyUsageResponse) -> None:
        """Apply a report. Raises _UnusableReport."""
        if len(response.keys) > MAX_KEYS:
            raise _UnusableReport(f"it has {len(response.keys)} keys, more than {MAX_KEYS}")
        if not gateway.instance or gateway.instance != response.instance:
            if gateway.instance or not is_instance(response.instance):
                raise _UnusableReport("it has no valid identity")
            if (other := self._find(response.instance)) is not None:
                # Such as one with addresses of both families: it must not count twice.
                raise _UnusableReport(f"it is the gateway at {other.address}")
            gateway.instance, gateway.problem = response.instance, ""
            logger.info("gateway connected", extra={"address": gateway.address})
            metrics.GATEWAYS_CONNECTED.set(self.num_connected)
        self._usage.received(
            gateway.address,
            (KeyUsage(k.name, k.num_running, k.num_requests, k.num_tokens) for k in response.keys),
            more=response.more,
        )
