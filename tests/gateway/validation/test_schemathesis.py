"""Schemathesis: requests generated from the gateway's openapi.json."""

from __future__ import annotations

import asyncio

import pytest

from tests.fuzzing import FuzzRequest, fuzz
from tests.gateway.direct import direct_client

NUM_CASES = 190


@pytest.mark.timeout(300)
def test_no_generated_request_is_a_5xx() -> None:
    """No request is a 5xx, and each endpoint with a body answers some with 200."""
    with asyncio.Runner() as runner:
        client_of = direct_client()
        client = runner.run(client_of.__aenter__())

        def send(request: FuzzRequest) -> int:
            headers = {"content-type": "application/json"}
            sending = client.request(
                request.method,
                request.path,
                params=request.query,
                content=request.body,
                headers=headers,
            )
            return runner.run(sending).status_code

        document = runner.run(client.get("/openapi.json")).json()
        counts = fuzz(document, send, NUM_CASES, seed_number=1)
        runner.run(client_of.__aexit__(None, None, None))
    for path in (
        "/v1/responses",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/detokenize",
        "/v1/rerank",
        "/v1/score",
        "/api/v1/search",
    ):
        assert counts[f"POST {path} 200"] > 0, counts
