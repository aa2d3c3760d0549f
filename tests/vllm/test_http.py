"""Weir in front of a plain `vllm serve`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vllm.checks import RequestChecks
from tests.vllm.servers import VllmServer, vllm_servers


@pytest.fixture(scope="module")
def engines(
    executable: Path, model: Path, logs: Path, offline: list[list[int]]
) -> Iterator[list[VllmServer]]:
    """One engine."""
    flags = ["--enable-prompt-tokens-details"]
    with vllm_servers(executable, model, logs, [flags]) as servers:
        yield servers


class TestHttp(RequestChecks):
    """Every kind of request."""
