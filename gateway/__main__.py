"""`python -m gateway`: the gateway service."""

from __future__ import annotations

from mesh.rpc.polling import silence_core, use_epoll1_engine


def main() -> None:
    """Read the settings and serve until SIGTERM or SIGINT."""
    use_epoll1_engine()
    silence_core()
    # Imported here: gRPC's core reads its configuration when it is imported.
    from gateway.http.server import serve
    from gateway.settings import GatewaySettings
    from mesh.process.lifecycle import run_process
    from mesh.process.settings import load

    settings = load(GatewaySettings, "gateway")
    run_process("gateway", settings, lambda stop: serve(settings, stop))


if __name__ == "__main__":
    main()
