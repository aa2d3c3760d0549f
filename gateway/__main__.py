"""`python -m gateway`: the gateway service."""

from __future__ import annotations

from gateway.http.server import serve
from gateway.settings import GatewaySettings
from mesh.process.lifecycle import run_process
from mesh.process.settings import load


def main() -> None:
    """Reads the settings and serves until a signal."""
    settings = load(GatewaySettings, "gateway")
    run_process("gateway", settings, lambda stop: serve(settings, stop))


if __name__ == "__main__":
    main()
