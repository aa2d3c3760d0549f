"""gRPC options that both ends of every hop share.

Keepalive pings hold idle streams open through load balancers, which drop connections that are
silent for a minute or more, and find a peer that vanished. The server must allow pings that
often, or it answers with GOAWAY `too_many_pings` (gRPC proposal A8).
"""

from __future__ import annotations

import json

KEEPALIVE_SECONDS = 20
KEEPALIVE_TIMEOUT_SECONDS = 10
MAX_MESSAGE_BYTES = 16 * 1024 * 1024

STREAM_WINDOW_BYTES = 64 * 1024
"""What may be on its way to a reader that does not read, in one stream.

gRPC would raise it by itself to megabytes (its bandwidth-delay probe); then a stalled reader
would hold thousands of unread tokens at each hop, and cancellation would come after them.
"""

Options = list[tuple[str, int | str]]


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def common_options() -> Options:
    """Message limits and keepalive."""
    return [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", _milliseconds(KEEPALIVE_SECONDS)),
        ("grpc.keepalive_timeout_ms", _milliseconds(KEEPALIVE_TIMEOUT_SECONDS)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", STREAM_WINDOW_BYTES),
    ]


def server_options(max_connection_age: float, max_connection_age_grace: float) -> Options:
    """For a server: connections end after an age, in seconds, so that clients spread again.

    Streams that run on such a connection may go on for the grace.
    """
    return [
        *common_options(),
        ("grpc.http2.min_ping_interval_without_data_ms", _milliseconds(KEEPALIVE_SECONDS / 2)),
        ("grpc.max_connection_age_ms", _milliseconds(max_connection_age)),
        ("grpc.max_connection_age_grace_ms", _milliseconds(max_connection_age_grace)),
        # Two processes on one port would each get half of the calls: better to fail.
        ("grpc.so_reuseport", 0),
    ]


def channel_options() -> Options:
    """For a channel: its own connection, and quick reconnects inside a cluster."""
    return [
        *common_options(),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
    ]


RETRIES = {
    "maxAttempts": 5,
    "initialBackoff": "0.05s",
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
"""Until a call has had its first message it may be made anew: nobody has seen anything of it."""


def balanced_options() -> Options:
    """For a channel to a service of which any replica will do: spread, and leave the draining out.

    The health that is followed is the process's own (""): it tells of a drain before the
    connection ends. A replica that refuses all the same, as it drains, costs a retry.
    """
    service_config = {
        "loadBalancingConfig": [{"round_robin": {}}],
        "healthCheckConfig": {"serviceName": ""},
        "methodConfig": [{"name": [{}], "retryPolicy": RETRIES}],
    }
    return [
        *channel_options(),
        ("grpc.service_config", json.dumps(service_config)),
        ("grpc.enable_retries", 1),
        ("grpc.dns_min_time_between_resolutions_ms", 1000),
    ]
