"""Access logs: one JSON line per request and service, without the request's text."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from tests.e2e.support.stack import SERVICES, Stack

pytestmark = pytest.mark.timeout(240)

REQUEST_ID = "log-test-1"
SECRET = "xylophone zebra"  # words of the query that no document contains


async def access_lines(stack: Stack, request_id: str) -> dict[str, list[dict[str, Any]]]:
    """The access log lines of a request by service; waits until each service has one."""
    async with asyncio.timeout(20):
        while True:
            found = {name: _lines(stack, name, request_id) for name in SERVICES}
            if all(found.values()):
                return found
            await asyncio.sleep(0.05)


def _lines(stack: Stack, name: str, request_id: str) -> list[dict[str, Any]]:
    whole = stack.log(name).read_text().rpartition("\n")[0]
    events = [json.loads(line) for line in whole.splitlines()]
    return [
        event
        for event in events
        if event.get("request_id") == request_id and event["message"] == "request finished"
    ]


async def test_every_hop_logs_a_request_once(stack: Stack, client: httpx.AsyncClient) -> None:
    """Status, tokens, time to first token, duration, finish reason, request and trace id."""
    params = {"query": f"kubernetes {SECRET}", "streaming": "true"}
    headers = {"x-request-id": REQUEST_ID}
    response = await client.get("/api/v1/search", params=params, headers=headers)
    assert response.status_code == 200
    usage = json.loads(response.text.rpartition("data: ")[2].splitlines()[0])["usage"]
    lines = await access_lines(stack, REQUEST_ID)
    trace_id = response.headers["x-trace-id"]
    for name in SERVICES:
        for line in lines[name]:
            assert line["service"] == name
            assert line["severity"] == "INFO"
            assert line["trace_id"] == trace_id
            assert line["duration_seconds"] > 0
    [gateway], [orchestrator], [inference] = (
        lines[name] for name in ("gateway", "orchestrator", "inference")
    )
    assert gateway["status"] == 200
    assert gateway["route"] == "/api/v1/search"
    assert orchestrator["code"] == "OK"
    for line in (gateway, orchestrator, inference):
        assert line["prompt_tokens"] == usage["prompt_tokens"]
        assert line["completion_tokens"] >= 1
        assert 0 < line["ttft_seconds"] <= line["duration_seconds"]
        assert line["finish_reason"] in ("stop", "length", "abort")
    assert gateway["ttft_seconds"] > orchestrator["ttft_seconds"] > inference["ttft_seconds"]
    assert {line["method"] for line in lines["tokenizer"]} == {"Encode"}
    assert lines["tokenizer"][-1]["num_tokens"] == usage["prompt_tokens"]


async def test_request_and_response_texts_are_not_logged(
    stack: Stack, client: httpx.AsyncClient
) -> None:
    """Neither prompt nor answer, nor an invalid value of a refused request."""
    headers = {"x-request-id": f"{REQUEST_ID}-secret"}
    body = {"prompt": f"{SECRET} " * 40, "max_tokens": 8}  # too long for the orchestrator to encode
    answered = await client.post("/v1/completions", json=body, headers=headers)
    assert answered.status_code == 200
    refused = await client.post("/v1/completions", json={**body, "temperature": SECRET})
    assert refused.status_code == 400
    await access_lines(stack, f"{REQUEST_ID}-secret")
    logs = {name: stack.log(name).read_text() for name in SERVICES}
    assert [name for name, log in logs.items() if SECRET in log] == []
    text = answered.json()["choices"][0]["text"].strip()
    if len(text) > 10:
        assert [name for name, log in logs.items() if text in log] == []
