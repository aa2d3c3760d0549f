"""Schemathesis: requests generated from the gateway's openapi.json."""

from __future__ import annotations

import asyncio

import pytest

from tests.fuzzing import FuzzRequest, fuzz
from tests.gateway.direct import direct_client

NUM_CASES = 150

MAX_SEEDS = 4

PATHS = {
    "/v1/responses",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/detokenize",
    "/v1/rerank",
    "/v1/score",
    "/api/v1/search",
}


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
        answered: set[str] = set()
        seed_number = 0
        # The order of sets differs between processes, and with it what a seed generates.
        while seed_number < MAX_SEEDS and not answered >= PATHS:
            seed_number += 1
            counts = fuzz(document, send, NUM_CASES, seed_number=seed_number)
            answered |= {path for path in PATHS if counts[f"POST {path} 200"]}
        runner.run(client_of.__aexit__(None, None, None))
    assert answered >= PATHS, PATHS - answered
