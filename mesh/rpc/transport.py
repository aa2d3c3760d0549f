"""gRPC options of servers and channels.

Keepalive pings keep idle streams open through load balancers, which close connections that are
silent for a minute or more, and detect peers that are frozen or cut off without a TCP reset. The
server must allow pings at this rate, or it sends GOAWAY `too_many_pings` (gRPC proposal A8).
"""

from __future__ import annotations

KEEPALIVE_SECONDS = 5
"""A connection on which nothing arrives for this time is pinged."""

KEEPALIVE_TIMEOUT_SECONDS = 7
"""A peer that does not acknowledge a ping within this time is lost: its streams end with
UNAVAILABLE, at most 12 s after its last byte. That leaves 3 s of the 15 s within which a stream
continues on another replica. gRPC answers pings in its own threads, also while Python computes."""

MAX_MESSAGE_BYTES = 16 * 1024 * 1024

HANDSHAKE_SECONDS = 10
"""Time in which a new connection must complete TLS and send HTTP/2's settings; by default two
minutes. Silent connections would occupy file descriptors for as long."""

STREAM_WINDOW_BYTES = 64 * 1024
"""HTTP/2 flow-control window of a stream.

By default gRPC's bandwidth-delay probe raises it to megabytes. Then thousands of unread tokens
could be buffered at each hop for a stalled reader, and a cancellation would be handled after them.
"""

Options = list[tuple[str, int | str]]


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def common_options(max_received_bytes: int = MAX_MESSAGE_BYTES) -> Options:
    """Message limits and keepalive.

    A ping that is not acknowledged ends the connection after `ping_timeout_ms`, by default a
    minute. `keepalive_timeout_ms` alone does not shorten this; it becomes TCP_USER_TIMEOUT.
    """
    return [
        ("grpc.max_receive_message_length", max_received_bytes),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", _milliseconds(KEEPALIVE_SECONDS)),
        ("grpc.keepalive_timeout_ms", _milliseconds(KEEPALIVE_TIMEOUT_SECONDS)),
        ("grpc.http2.ping_timeout_ms", _milliseconds(KEEPALIVE_TIMEOUT_SECONDS)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", STREAM_WINDOW_BYTES),
    ]


def server_options(max_connection_age: float, max_connection_age_grace: float) -> Options:
    """Options of a server: connections are closed after an age, so that clients rebalance.

    Streams on such a connection may continue for the grace period. Both are in seconds.
    """
    return [
        *common_options(),
        ("grpc.http2.min_ping_interval_without_data_ms", _milliseconds(KEEPALIVE_SECONDS / 2)),
        ("grpc.server_handshake_timeout_ms", _milliseconds(HANDSHAKE_SECONDS)),
        ("grpc.max_connection_age_ms", _milliseconds(max_connection_age)),
        ("grpc.max_connection_age_grace_ms", _milliseconds(max_connection_age_grace)),
        # Binding a used port must fail; with it, two processes would share the calls.
        ("grpc.so_reuseport", 0),
    ]


def channel_options(max_received_bytes: int = MAX_MESSAGE_BYTES) -> Options:
    """Options of a channel: a separate connection, and fast reconnects inside a cluster.

    The calls between the services never use the proxy of `grpc_proxy`, `https_proxy` or
    `http_proxy`, which is for requests to the internet.
    """
    return [
        *common_options(max_received_bytes),
        ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
    ]
