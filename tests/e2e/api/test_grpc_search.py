"""The example client of the orchestrator's unary search."""

from __future__ import annotations

import subprocess
import sys

import httpx

from tests.e2e.support.stack import ROOT, Stack

QUERY = "What is artificial intelligence?"


def run_example(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "examples/grpc_search.py", *arguments],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )


async def test_the_example_prints_the_same_answer_as_http(
    stack: Stack, client: httpx.AsyncClient
) -> None:
    """Sources, summary and usage of `Summarize` equal those of the HTTP API."""
    answer = (await client.get("/api/v1/search", params={"query": QUERY})).json()
    done = run_example(QUERY, stack.addresses["orchestrator"])
    assert done.returncode == 0, done.stderr
    *sources, summary, usage = [line for line in done.stdout.splitlines() if line]
    assert sources == [
        f"[{each['position']}] {each['title']}  {each['url']}" for each in answer["search_results"]
    ]
    assert summary == answer["summary"]
    counts = answer["usage"]
    assert usage == (
        f"{counts['prompt_tokens']} prompt tokens, {counts['completion_tokens']} completion tokens"
    )


def test_the_example_reports_a_refusal(stack: Stack) -> None:
    """An invalid query is an error with the status and the field, and exit code 1."""
    done = run_example(" ", stack.addresses["orchestrator"])
    assert done.returncode == 1
    assert done.stderr == "INVALID_ARGUMENT: query must have 1 to 500 characters, given 0\n"
