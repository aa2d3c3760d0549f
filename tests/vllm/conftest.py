"""The model, the engines and the stack that the tests share. At most two vLLMs run at once."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.support.stack import ROOT, Stack
from tests.vllm.ask import NUM_TOKENS, PROMPTS
from tests.vllm.servers import NAME, VllmServer, offline_tokens


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Allows for the starts of vLLM."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="session")
def executable() -> Path:
    """The program `vllm`."""
    found = os.environ.get("VLLM") or shutil.which("vllm")
    if not found:
        pytest.skip("vLLM is not installed: run `make test-vllm`")
    return Path(found).absolute()


@pytest.fixture(scope="session")
def model() -> Path:
    """The demo model, in float32: its text is valid UTF-8, as the conformance suite needs."""
    return ROOT / "models" / "demo"


@pytest.fixture(scope="session")
def stack_settings(model: Path) -> dict[str, str]:
    """Settings of stacks with this model."""
    return {
        "TOKENIZER_MODEL": str(model),
        "INFERENCE_MODEL": str(model),
        "INFERENCE_MODEL_NAME": NAME,
        "INFERENCE_DTYPE": "float32",
        "INFERENCE_THREADS": "1",
        "INFERENCE_KV_CACHE_TOKENS": "32768",
    }


@pytest.fixture(scope="session")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for logs."""
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="session")
def offline(executable: Path, model: Path, logs: Path) -> list[list[int]]:
    """Greedy tokens of `PROMPTS` from vLLM's offline API, before servers need the memory."""
    return offline_tokens(executable, model, logs / "offline.log", PROMPTS, NUM_TOKENS)


@pytest.fixture(scope="module")
def stack(
    engines: list[VllmServer],
    stack_settings: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Stack]:
    """A stack in front of the module's engines, without Weir's own."""
    targets = ",".join(engine.target for engine in engines)
    settings = {**stack_settings, "INFERENCE_HOST": targets}
    stack = Stack(tmp_path_factory.mktemp("stack"), None, settings)
    try:
        stack.start("tokenizer", "orchestrator", "gateway")
        stack.wait_ready()
        yield stack
    finally:
        stack.stop()


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of the gateway."""
    async with httpx.AsyncClient(base_url=stack.url, timeout=120, trust_env=False) as client:
        yield client
