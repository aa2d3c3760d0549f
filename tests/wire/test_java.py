"""The JDK's HTTP client."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from tests.wire.conftest import GatewayProcess

PROGRAM = Path(__file__).parent / "Completion.java"

pytestmark = pytest.mark.timeout(120)


async def test_the_jdks_client_completes_and_streams(gateway_process: GatewayProcess) -> None:
    """Its offers of h2c are declined and its bodies are read, small and large ones."""
    java = shutil.which("java")
    if java is None:
        pytest.skip("java is not installed")
    process = await asyncio.create_subprocess_exec(
        java, str(PROGRAM), gateway_process.url,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, errors = await process.communicate()
    if b"jdk.compiler" in errors:
        pytest.skip("java has no compiler")
    assert process.returncode == 0, errors.decode()
    lines = output.decode().splitlines()
    assert lines[::2] == ["200 HTTP_1_1"] * 3
    assert all('"text":"Hello world"' in line for line in lines[1:4:2])
    assert lines[5].endswith("data: [DONE]")
    prompts = [each.text for each in gateway_process.orchestrator.requests]  # type: ignore[attr-defined]
    assert prompts == ["Hi", "Hi" * 50_000, "Hi"]
