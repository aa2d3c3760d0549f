"""Starting and stopping the four processes."""

from __future__ import annotations

import signal
from pathlib import Path

import httpx
import pytest

from tests.e2e.support.stack import Stack


@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_processes_start_in_any_order_and_a_signal_stops_them(
    tmp_path: Path, index: Path, number: signal.Signals
) -> None:
    """They are ready once a token can be produced.

    On a signal each exits with status 0 and without a traceback, even during a stream.
    """
    stack = Stack(tmp_path, index, {f"{s}_DRAIN_SECONDS": "1" for s in ("INFERENCE", "GATEWAY")})
    try:
        if number is signal.SIGINT:
            start_engine_last(stack)
        else:
            stack.start()
            stack.wait_ready()
        body = {"prompt": "Once", "max_tokens": 2000, "ignore_eos": True, "stream": True}
        url = f"{stack.url}/v1/completions"
        with httpx.stream("POST", url, json=body, timeout=30, trust_env=False) as response:
            assert response.status_code == 200
            next(response.iter_lines())
            codes = stack.stop(number)
    finally:
        stack.stop(signal.SIGKILL)
    logs = {name: stack.log(name).read_text() for name in codes}
    assert codes == dict.fromkeys(codes, 0)
    assert not [name for name, log in logs.items() if "Traceback" in log], logs


def start_engine_last(stack: Stack) -> None:
    """Without an engine the gateway is live but not ready; with one it becomes ready."""
    stack.start("gateway", "orchestrator", "tokenizer")
    wait_alive(stack)
    assert httpx.get(f"{stack.url}/readyz", trust_env=False).status_code == 503
    stack.start("inference")
    stack.wait_ready()


def wait_alive(stack: Stack) -> None:
    """Waits until the gateway answers `/livez`."""
    transport = httpx.HTTPTransport(retries=8)
    with httpx.Client(transport=transport, trust_env=False) as client:
        assert client.get(f"{stack.url}/livez").status_code == 200
