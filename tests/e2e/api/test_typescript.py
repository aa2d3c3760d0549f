"""The official TypeScript client, type-checked and run against the four processes."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import warnings
from pathlib import Path

import httpx
import pytest

from mesh.v1 import inference_pb2, inference_pb2_grpc
from tests.e2e.support.stack import Stack

SOURCES = Path(__file__).parent / "typescript"

pytestmark = pytest.mark.timeout(600)


def skip(reason: str) -> None:
    """Skips the test with a warning, which appears in the summary of the run."""
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.warn(f"the TypeScript client is not tested: {reason}", stacklevel=2)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled program, in a folder with its npm packages."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        skip("node and npm are missing")
    folder = tmp_path_factory.mktemp("typescript")
    for path in SOURCES.iterdir():
        shutil.copy(path, folder)
    install = [str(npm), "install", "--no-audit", "--no-fund", "--loglevel=error"]
    done = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=400)
    if done.returncode != 0 and any(sign in done.stderr for sign in ("ENOTFOUND", "ECONN")):
        skip("npm's registry cannot be reached")
    assert done.returncode == 0, done.stderr
    compile = [str(folder / "node_modules" / ".bin" / "tsc"), "--project", "."]
    done = subprocess.run(compile, cwd=folder, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout
    return folder / "stream.js"


async def test_the_client_streams(
    stack: Stack,
    program: Path,
    client: httpx.AsyncClient,
    inference: inference_pb2_grpc.InferenceServiceAsyncStub,
) -> None:
    """Text, finish reason, usage and errors match; leaving a stream early aborts it."""
    command = ["node", str(program), f"{stack.url}/v1"]
    done = await asyncio.to_thread(
        subprocess.run, command, cwd=program.parent, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["text"] == seen["whole"]
    assert seen["reason"] in ("stop", "length")
    assert seen["usage"]["completion_tokens"] == seen["wholeTokens"] > 0
    assert isinstance(seen["completion"], str)
    assert (seen["refusal"], seen["code"]) == (404, "model_not_found")
    assert seen["size"] == 256
    async with asyncio.timeout(30):
        while (await inference.GetLoad(inference_pb2.GetLoadRequest())).num_requests_running:
            await asyncio.sleep(0.1)
