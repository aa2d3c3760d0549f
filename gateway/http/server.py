"""The HTTP server: listen, serve, and drain on the stop event.

stop ─▶ readyz 503, new requests 503 ─▶ running requests end, up to drain_seconds
     ─▶ the rest end with an error event ─▶ connections closed ─▶ return
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager

import uvicorn

from gateway.app import build_app
from gateway.connection.protocol import LimitedProtocol
from gateway.connection.uvicorn_server import UvicornServer
from gateway.conversations.factory import make_store
from gateway.dependencies import Dependencies
from gateway.http.drain import Drain
from gateway.keys.key_file import KeyFileError
from gateway.keys.key_ring import KeyRing
from gateway.keys.shared_usage import SharedUsage
from gateway.peers.gateways import OtherGateways
from gateway.peers.service import GatewayService
from gateway.responses.kept import KeptResponses
from gateway.settings import GatewaySettings
from gateway.streaming.resumable_streams import ResumableStreams
from gateway.upstream.client import SERVICE, Orchestrator
from gateway.upstream.readiness import Readiness
from mesh.observability.metrics import metrics_server
from mesh.process.garbage_collection import collect_on_timer
from mesh.process.lifecycle import StartupError
from mesh.process.watched_files import WatchedFiles
from mesh.rpc.kept_traces import kept_traces, passing_on
from mesh.rpc.peers.balanced_channel import BalancedChannel
from mesh.rpc.server import Server
from mesh.rpc.targets import AddressError, at_port
from mesh.rpc.tls import TlsError, TlsFiles

logger = logging.getLogger("gateway.http.server")

IDLE_CONNECTION_SECONDS = 75
"""Longer than load balancers' keep-alive, so that the gateway never closes during a request."""

SEND_BUFFER_BYTES = 128 * 1024
"""Size of the kernel's send buffer, enough for a stream of text at any round-trip time."""

RECEIVE_BUFFER_BYTES = 64 * 1024
"""Size of the kernel's receive buffer; Linux doubles it.

It bounds the size of one read, and with it the time that a body in chunks of one byte occupies the
event loop: 10 ms instead of 20 ms.
"""

CHECK_SECONDS = 1.0
"""Interval of checks whether the certificate's files changed."""

CUT_OFF_SECONDS = 2.0
"""Time that cut-off requests have to send their error."""

CLOSE_SECONDS = 1.0
"""Time that clients have to read the rest of their responses."""


class GatewayServer:
    """A running gateway; `running` creates one."""

    def __init__(self, settings: GatewaySettings, dependencies: Dependencies) -> None:
        self._settings = settings
        self.dependencies = dependencies
        config = uvicorn.Config(
            build_app(dependencies),
            http=LimitedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            # The peer's address is not interpreted, so a proxy's forwarded headers are ignored.
            proxy_headers=False,
            timeout_keep_alive=IDLE_CONNECTION_SECONDS,
            ssl_certfile=settings.http_tls_certificate or None,
            ssl_keyfile=settings.http_tls_private_key or None,
            ssl_ca_certs=settings.http_tls_client_ca or None,
            ssl_cert_reqs=ssl.CERT_REQUIRED if settings.http_tls_client_ca else ssl.CERT_NONE,
        )
        try:
            config.load()
        except (OSError, ssl.SSLError) as error:
            raise TlsError(f"GATEWAY_HTTP_TLS_…: {error.strerror}") from error
        self._config = config
        self._server = UvicornServer(config)
        self._socket = _listen(settings.listen)
        self.port: int = self._socket.getsockname()[1]

    async def serve(self) -> None:
        """Serve until `drain` has ended."""
        await self._server.serve([self._socket])

    async def drain(self) -> int:
        """Shut down gracefully; return the number of requests that were cut off."""
        drain = self.dependencies.drain
        drain.begin()
        self._server.begin_drain()
        cut_off = 0
        if not await _within(self._settings.drain_seconds, drain.wait_idle()):
            cut_off = drain.cut_off()
            await _within(CUT_OFF_SECONDS, drain.wait_idle())
        self._server.stop()
        return cut_off

    async def watch_certificate(self) -> None:
        """Load renewed certificates for new connections, until cancelled.

        A renewed client CA is added; the old one is trusted until a restart.
        """
        context, settings = self._config.ssl, self._settings
        if context is None:
            return
        pair = (settings.http_tls_certificate, settings.http_tls_private_key)
        files = WatchedFiles([path for path in (*pair, settings.http_tls_client_ca) if path])
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            if not files.changed():
                continue
            try:
                context.load_cert_chain(*pair)
                if settings.http_tls_client_ca:
                    context.load_verify_locations(settings.http_tls_client_ca)
                logger.info("certificate renewed")
            except (OSError, ssl.SSLError) as error:
                logger.error("certificate not renewed", extra={"error": error.strerror})

    def abort(self) -> None:
        """Abort the remaining connections."""
        self._server.abort_connections()


@asynccontextmanager
async def running(
    settings: GatewaySettings,
) -> AsyncIterator[tuple[GatewayServer, asyncio.Task[None]]]:
    """Run a gateway inside the block, and drain it at the end."""
    keys = _key_ring(settings)
    channel = BalancedChannel(
        settings.orchestrator_target,
        SERVICE,
        TlsFiles.of(settings),
        refresh_seconds=settings.dns_refresh_seconds,
        hold_seconds=settings.hold_seconds,
    )
    orchestrator, drain = Orchestrator(channel), Drain()
    readiness = Readiness(orchestrator, drain)
    dependencies = Dependencies(
        settings=settings,
        orchestrator=orchestrator,
        readiness=readiness,
        drain=drain,
        keys=keys,
        resumable_streams=ResumableStreams(settings.resume_seconds),
        responses=KeptResponses(make_store(settings), drain, settings.response_store_bytes),
    )
    async with (
        channel.running(),
        passing_on(kept_traces(channel.channels)),
        _among_gateways(settings, dependencies),
    ):
        try:
            async with _serving(settings, dependencies) as running_server:
                yield running_server
        finally:
            await dependencies.resumable_streams.close()
            await dependencies.responses.close()


@asynccontextmanager
async def _among_gateways(
    settings: GatewaySettings, dependencies: Dependencies
) -> AsyncIterator[None]:
    """Follow the other gateways inside the block, and serve them, also while this one drains."""
    streams, tls = dependencies.resumable_streams, TlsFiles.of(settings)
    usage = SharedUsage(dependencies.keys)
    others = OtherGateways(
        settings.peers_target, streams.instance, usage, settings.dns_refresh_seconds, tls
    )
    streams.elsewhere = others
    async with AsyncExitStack() as stack:
        if settings.peers_listen:
            service = GatewayService(
                usage, streams, dependencies.drain, others.look_up, _certificate_names(settings)
            )
            server = Server([service.servicer], tls)
            port = await server.start(settings.peers_listen)
            stack.push_async_callback(server.drain, 0)
            await server.set_ready(True)
            address = at_port(settings.peers_listen, port)
            logger.info("listening for gateways", extra={"address": address})
        if settings.peers_target:
            await stack.enter_async_context(others.running())
        yield


def _certificate_names(settings: GatewaySettings) -> list[str]:
    """The names that certificates of gateways have; none if callers need no certificate."""
    if not (settings.tls_certificate and settings.tls_ca and settings.tls_client_auth):
        return []
    targets = settings.peers_target.split(",") if settings.peers_target else []
    return [target.rpartition(":")[0].strip("[]") for target in targets]


@asynccontextmanager
async def _serving(
    settings: GatewaySettings, dependencies: Dependencies
) -> AsyncIterator[tuple[GatewayServer, asyncio.Task[None]]]:
    server = GatewayServer(settings, dependencies)
    serving = asyncio.create_task(server.serve(), name="http")
    watching = [
        asyncio.create_task(dependencies.keys.watch(), name="keys"),
        asyncio.create_task(dependencies.readiness.watch(), name="readiness"),
        asyncio.create_task(server.watch_certificate(), name="certificate"),
        asyncio.create_task(dependencies.responses.watch(), name="responses"),
    ]
    try:
        yield server, serving
    finally:
        for task in watching:
            task.cancel()
        cut_off = await server.drain()
        if not (await asyncio.wait({serving}, timeout=CLOSE_SECONDS))[0]:
            server.abort()
        await serving
        logger.info("drained", extra={"num_aborted": cut_off})


def _key_ring(settings: GatewaySettings) -> KeyRing:
    try:
        return KeyRing(settings.api_keys_file, settings.api_key_list)
    except KeyFileError as error:
        raise StartupError(f"GATEWAY_API_KEYS_FILE: {error}") from error


async def serve(settings: GatewaySettings, stop: asyncio.Event) -> None:
    """Serve until `stop`, then drain. Raises AddressError if it cannot listen."""
    async with _metrics(settings.metrics_listen), running(settings) as (server, serving):
        logger.info("listening", extra={"address": at_port(settings.listen, server.port)})
        stopping = asyncio.create_task(stop.wait(), name="stop")
        async with collect_on_timer():
            await asyncio.wait({stopping, serving}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()


@asynccontextmanager
async def _metrics(address: str) -> AsyncIterator[None]:
    """Serve metrics from a separate thread, so that they answer when the event loop is blocked."""
    if not address:
        yield
        return
    with metrics_server(address, asyncio.get_running_loop()) as port:
        logger.info("metrics listening", extra={"address": at_port(address, port)})
        yield


async def _within(seconds: float, waiting: Coroutine[object, object, object]) -> bool:
    try:
        await asyncio.wait_for(waiting, seconds)
    except TimeoutError:
        return False
    return True


def _listen(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        family, *_, name = socket.getaddrinfo(
            host, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        both = family == socket.AF_INET6 and host == "::" and socket.has_dualstack_ipv6()
        server = socket.create_server(name[:2], family=family, backlog=2048, dualstack_ipv6=both)
    except OSError as error:
        raise AddressError(address, error) from error
    # Inherited by each connection. By default the kernel buffers megabytes of a stream for a
    # client that does not read.
    server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
    return server
