"""Fixtures: running stacks that several tests share, and clients of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from mesh.rpc.channel import open_channel
from mesh.v1 import inference_pb2_grpc
from tests.e2e.support.stack import ROOT, Stack, running_stack


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks every test in this folder as `e2e`."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The search index of examples/corpus, built by the command line."""
    out = tmp_path_factory.mktemp("index") / "corpus.sqlite3"
    command = [sys.executable, "-m", "orchestrator.index", "examples/corpus", "--out", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    return out


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, index: Path) -> Iterator[Stack]:
    """The four processes with the demo model and the corpus."""
    with running_stack(tmp_path_factory.mktemp("stack"), index) as stack:
        yield stack


@pytest.fixture(scope="session")
def instruct_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The four processes with a small random model, which generates tokens very quickly."""
    # Imported here, because it imports transformers, which takes seconds.
    from tests.e2e.support.instruct_model import make_instruct_model

    folder = make_instruct_model(tmp_path_factory.mktemp("model") / "instruct")
    settings = {
        "TOKENIZER_MODEL": str(folder),
        "INFERENCE_MODEL": str(folder),
        "INFERENCE_KV_CACHE_TOKENS": "16384",
    }
    with running_stack(tmp_path_factory.mktemp("instruct"), None, settings) as stack:
        yield stack


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of the gateway."""
    async with httpx.AsyncClient(base_url=stack.url, timeout=30, trust_env=False) as client:
        yield client


@pytest.fixture
async def inference(stack: Stack) -> AsyncIterator[inference_pb2_grpc.InferenceServiceAsyncStub]:
    """A stub of the inference service, to read its load."""
    channel = open_channel(stack.addresses["inference"])
    yield inference_pb2_grpc.InferenceServiceStub(channel)
    await channel.close()
