"""The model, the engines and the stack that the tests share. At most two vLLMs run at once."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.e2e.support.instruct_model import make_instruct_model
from tests.vllm.servers import NAME


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
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random Llama with a tool template."""
    return make_instruct_model(tmp_path_factory.mktemp("model") / NAME, hidden_size=128)


@pytest.fixture(scope="session")
def stack_settings(model: Path) -> dict[str, str]:
    """Settings of stacks with this model."""
    return {
        "TOKENIZER_MODEL": str(model),
        "INFERENCE_MODEL": str(model),
        "INFERENCE_MODEL_NAME": NAME,
        "INFERENCE_DTYPE": "float32",
        "INFERENCE_KV_CACHE_TOKENS": "32768",
    }


@pytest.fixture(scope="session")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for logs."""
    return tmp_path_factory.mktemp("logs")
