"""A conversation by `previous_response_id` over two gateways that share PostgreSQL."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.support.stack import Stack
from tests.orchestrator.search.retrievers.postgres import needs_postgres

pytestmark = [needs_postgres, pytest.mark.timeout(300)]

SECONDS = 60.0
"""Time for which responses are kept, enough for all turns and a restart on a busy machine."""


@pytest.fixture
def shared_stack(tmp_path: Path, postgres_url: str) -> Iterator[Stack]:
    """The four processes; its gateways have two keys and store in PostgreSQL."""
    settings = {
        "GATEWAY_API_KEYS": "one, two",
        "GATEWAY_RESPONSE_STORE": postgres_url,
        "GATEWAY_RESPONSE_STORE_SECONDS": str(SECONDS),
    }
    stack = Stack(tmp_path, None, settings)
    try:
        stack.start()
        stack.wait_ready()
        yield stack
    finally:
        stack.stop()


def respond(url: str, key: str = "one", **body: Any) -> httpx.Response:
    """The response of a gateway."""
    headers = {"authorization": f"Bearer {key}"}
    body = {"temperature": 0, "max_output_tokens": 8, **body}
    path = f"{url}/v1/responses"
    return httpx.post(path, json=body, headers=headers, timeout=60, trust_env=False)


def text_of(response: httpx.Response) -> str:
    """The text of a response, which must have succeeded."""
    assert response.status_code == 200, response.text
    text: str = response.json()["output"][0]["content"][0]["text"]
    return text


def test_a_conversation_over_two_gateways(shared_stack: Stack) -> None:
    """Three turns at different gateways, one of which restarts; other keys; expiry."""
    stack = shared_stack
    with stack.another_gateway() as other:
        first = respond(stack.url, input="One")
        second = respond(other, input="Two", previous_response_id=first.json()["id"])
        # The gateway that made the first response restarts.
        stack.processes["gateway"].terminate()
        assert stack.processes.pop("gateway").wait(20) == 0
        stack.start("gateway")
        stack.wait_ready()
        third = respond(stack.url, input="Three", previous_response_id=second.json()["id"])
        # The same conversation in one request has the same answer.
        texts = [text_of(first), text_of(second)]
        items = []
        for asked, answer in zip(("One", "Two"), texts, strict=True):
            items += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        whole = respond(other, input=[*items, {"role": "user", "content": "Three"}])
        assert text_of(third) == text_of(whole)
        assert third.json()["usage"]["input_tokens"] == whole.json()["usage"]["input_tokens"]
        id = third.json()["id"]
        for url in (stack.url, other):
            refused = respond(url, "two", input="Four", previous_response_id=id)
            assert refused.status_code == 404
            assert refused.json()["error"]["code"] == "previous_response_not_found"
    wait_until_gone(stack.url, id)


def wait_until_gone(url: str, id: str) -> None:
    """Wait until a response has expired."""
    headers = {"authorization": "Bearer one"}
    deadline = time.monotonic() + SECONDS + 60
    with httpx.Client(timeout=60, trust_env=False, headers=headers) as client:
        while client.get(f"{url}/v1/responses/{id}").status_code == 200:
            assert time.monotonic() < deadline, "the response has not expired"
            client.get(f"{url}/livez")
            time.sleep(0.2)
    expired = respond(url, input="Five", previous_response_id=id)
    assert expired.status_code == 404
