"""gRPC options of servers and channels are compatible."""

from __future__ import annotations

from mesh.rpc.transport import channel_options, server_options


def test_the_server_allows_the_clients_pings() -> None:
    """Pings at a higher rate than the server allows would close the connection (GOAWAY)."""
    server, client = dict(server_options(60, 60)), dict(channel_options())
    allowed = server["grpc.http2.min_ping_interval_without_data_ms"]
    assert int(allowed) < int(client["grpc.keepalive_time_ms"])
    assert client["grpc.keepalive_permit_without_calls"] == 1


def test_message_limits_are_equal_at_both_ends() -> None:
    """Each end accepts what the other may send."""
    server, client = dict(server_options(60, 60)), dict(channel_options())
    for name in ("grpc.max_receive_message_length", "grpc.max_send_message_length"):
        assert server[name] == client[name]


def test_ages_are_converted_to_milliseconds() -> None:
    """The arguments are seconds, gRPC's options milliseconds."""
    options = dict(server_options(1.5, 2))
    assert options["grpc.max_connection_age_ms"] == 1500
    assert options["grpc.max_connection_age_grace_ms"] == 2000
