"""The four processes under random requests generated from openapi.json."""

from __future__ import annotations

import os

import httpx
import pytest

from tests.e2e.support.stack import Stack
from tests.fuzzing import FuzzRequest, fuzz

NUM_CASES = int(os.environ.get("FUZZ_CASES", "90"))
"""`make fuzz` sets it to 5,000."""


@pytest.mark.timeout(200 + 2 * NUM_CASES)
def test_no_documented_request_causes_a_server_error(stack: Stack) -> None:
    """No response is 5xx, and the stack is ready afterwards."""
    with httpx.Client(base_url=stack.url, timeout=60, trust_env=False) as client:

        def send(request: FuzzRequest) -> int:
            headers = {"content-type": "application/json"}
            response = client.request(
                request.method,
                request.path,
                params=request.query,
                content=request.body,
                headers=headers,
            )
            assert "server_error" not in response.text, (request, response.text)
            return response.status_code

        document = client.get("/openapi.json").json()
        counts = fuzz(document, send, NUM_CASES, seed_number=NUM_CASES)
        assert client.get("/readyz").status_code == 200
    paths = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
    assert sum(counts[f"POST {path} 200"] for path in paths) > 0, counts
    print(counts)
