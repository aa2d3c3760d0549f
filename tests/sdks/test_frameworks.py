"""OpenAI's Agents SDK and LangChain run a tool loop against the four processes.

The model is random, so that what it calls and answers proves that it was constrained. The
frameworks have an environment of their own, which `make test-sdks` creates.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.support.instruct_model import make_instruct_model
from tests.e2e.support.stack import Stack, running_stack
from tests.tokenizer.conftest import train_tokenizer

PYTHON = os.environ.get("SDKS_PYTHON", "")
FOLDER = Path(__file__).parent

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(not PYTHON, reason="needs SDKS_PYTHON, the Python of `make test-sdks`"),
]


@pytest.fixture(scope="module")
def random_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The four processes with a small random model."""
    folder = make_instruct_model(tmp_path_factory.mktemp("model") / "instruct")
    settings = {
        "TOKENIZER_MODEL": str(folder),
        "INFERENCE_MODEL": str(folder),
        "INFERENCE_KV_CACHE_TOKENS": "16384",
    }
    with running_stack(tmp_path_factory.mktemp("stack"), None, settings) as stack:
        yield stack


def run(program: str, stack: Stack, *arguments: str) -> dict[str, Any]:
    """What a program of this folder prints."""
    done = subprocess.run(
        [PYTHON, str(FOLDER / program), f"{stack.url}/v1", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "NO_PROXY": "127.0.0.1", "PYTHONPATH": ""},
    )
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return seen


def test_the_agents_sdk_runs_a_tool_loop(random_stack: Stack) -> None:
    """A call, its result, and an answer; streamed and not."""
    end_token = train_tokenizer().token_to_id("<|im_end|>")
    seen = run("agents_loop.py", random_stack, str(end_token))
    assert len(seen["called"]) == 2
    assert all(isinstance(each["warm"], bool) for each in seen["called"])
    assert seen["num_responses"] == 2
    assert seen["items"][:2] == ["tool_call_item", "tool_call_output_item"]
    assert seen["output"] == seen["streamed"] != ""
    assert {
        "response.created",
        "response.function_call_arguments.delta",
        "response.output_text.delta",
        "response.output_item.done",
    } <= set(seen["kinds"])


def test_langchain_runs_a_tool_loop(random_stack: Stack) -> None:
    """With messages and by response id; structured output and streams."""
    seen = run("langchain_loop.py", random_stack)
    assert seen["call"]["city"] in ("Rome", "Oslo")
    assert isinstance(seen["call"]["warm"], bool)
    assert seen["second"] == seen["by_id"] != ""
    assert set(seen["parsed"]) == {"warm", "city"}
    assert seen["streamed"] == seen["whole"] != ""
    assert seen["usage"]["input_tokens"] > 0
