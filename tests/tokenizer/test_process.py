"""The tokenizer process: exit codes and draining."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from mesh.v1 import tokenizer_pb2, tokenizer_pb2_grpc
from tests.tokenizer.conftest import MakeModel

LOCAL = ("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--log-format", "json")


def start(*arguments: str, **variables: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tokenizer", *arguments]
    environment = {**os.environ, **variables}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.fixture
def process(make_model: MakeModel) -> Iterator[subprocess.Popen[str]]:
    with start(*LOCAL, "--model", str(make_model())) as process:
        yield process
        process.kill()


def listening_port(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        if '"listening"' in line:
            return line.rpartition("127.0.0.1:")[2].partition('"')[0]
    raise AssertionError("ended without listening")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_exits_with_status_0(
    process: subprocess.Popen[str], number: signal.Signals
) -> None:
    """A serving process ends within seconds of the signal."""
    with grpc.insecure_channel(f"127.0.0.1:{listening_port(process)}") as channel:
        stub = tokenizer_pb2_grpc.TokenizerServiceStub(channel)
        response = stub.Encode(tokenizer_pb2.EncodeRequest(text="hello"), timeout=10)
    started = time.monotonic()
    process.send_signal(number)
    _, log = process.communicate(timeout=10)
    assert process.returncode == 0, log
    assert '"drained"' in log
    assert time.monotonic() - started < 5
    assert len(response.token_ids) > 0


def test_all_invalid_settings_are_reported_together() -> None:
    """Exit code 3, and one log line for each invalid variable with its value."""
    with start(
        TOKENIZER_LISTEN="nowhere",
        TOKENIZER_NUM_WORKERS="0",
        TOKENIZER_MAX_INPUT_CHARACTERS="many",
    ) as process:
        _, log = process.communicate(timeout=20)
    assert process.returncode == 3
    assert "TOKENIZER_LISTEN='nowhere': must be HOST:PORT" in log
    assert "TOKENIZER_NUM_WORKERS='0'" in log
    assert "TOKENIZER_MAX_INPUT_CHARACTERS='many'" in log


def test_a_missing_model_fails_the_start(tmp_path: Path) -> None:
    """Exit code 3, with the reason in the log."""
    with start(*LOCAL, "--model", str(tmp_path / "none")) as process:
        _, log = process.communicate(timeout=20)
    assert process.returncode == 3
    assert "is neither a folder, a GGUF file, nor a hub id" in log
    assert "Traceback" not in log
