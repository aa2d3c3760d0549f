"""Texts of all kinds of characters pass tokenizer, deltas and SSE unchanged."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from typing import Any

import httpx
import pytest

from mesh.rpc.channel import open_channel
from mesh.v1 import tokenizer_pb2, tokenizer_pb2_grpc
from tests.e2e.support.sse import events
from tests.e2e.support.stack import Stack
from tests.e2e.support.unicode_texts import random_text

NUM_TEXTS = 1000
NUM_GENERATED = 24
BATCH = 16

pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def stack(instruct_stack: Stack) -> Stack:
    """The stack with the random model: the quality of its output does not matter here."""
    return instruct_stack


async def echoed(client: httpx.AsyncClient, prompts: Sequence[Any]) -> list[bytes]:
    """The echoed prompts, each as the concatenated bytes of its events."""
    body = {"prompt": prompts, "max_tokens": 0, "echo": True, "stream": True}
    texts = [b""] * len(prompts)
    async with client.stream("POST", "/v1/completions", json=body) as response:
        assert response.status_code == 200, await response.aread()
        async for event in events(response):
            for choice in event.data["choices"]:
                texts[choice["index"]] += choice["text"].encode()
    return texts


async def test_a_thousand_random_texts_round_trip_as_ids(
    client: httpx.AsyncClient, stack: Stack
) -> None:
    """Encoded by the tokenizer, sent as token ids, echoed, and read from the stream."""
    rng = random.Random(1000)
    texts = [random_text(rng) for _ in range(NUM_TEXTS)]
    channel = open_channel(stack.addresses["tokenizer"])
    stub = tokenizer_pb2_grpc.TokenizerServiceStub(channel)
    try:
        for begin in range(0, NUM_TEXTS, BATCH):
            batch = texts[begin : begin + BATCH]
            requests = [tokenizer_pb2.EncodeRequest(text=text) for text in batch]
            encoded = await asyncio.gather(*map(stub.Encode, requests))
            ids = [list(each.token_ids) for each in encoded]
            assert await echoed(client, ids) == [text.encode() for text in batch]
    finally:
        await channel.close()


async def test_texts_are_echoed_unchanged(client: httpx.AsyncClient) -> None:
    """A prompt that is a text is echoed as that text."""
    rng = random.Random(2)
    texts = [random_text(rng) for _ in range(2 * BATCH)]
    for begin in range(0, len(texts), BATCH):
        batch = texts[begin : begin + BATCH]
        assert await echoed(client, batch) == [text.encode() for text in batch]


async def generated(client: httpx.AsyncClient, text: str) -> str:
    """The output of a model that is constrained to exactly this text, as JSON."""
    schema = {"type": "string", "enum": [text]}
    body = {
        "messages": [{"role": "user", "content": "Write."}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        "temperature": 1,
        "seed": 5,
        "max_tokens": 1000,
        "stream": True,
    }
    output = b""
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200, await response.aread()
        async for event in events(response):
            for choice in event.data["choices"]:
                output += choice["delta"].get("content", "").encode()
    value = json.loads(output)
    assert isinstance(value, str)
    return value


async def test_generated_texts_arrive_unchanged(client: httpx.AsyncClient) -> None:
    """For any tokenization of the text, and any split of its characters between tokens."""
    rng = random.Random(24)
    texts = [random_text(rng) for _ in range(NUM_GENERATED)]
    for begin in range(0, NUM_GENERATED, 8):
        batch = texts[begin : begin + 8]
        assert await asyncio.gather(*(generated(client, text) for text in batch)) == batch


async def test_lone_surrogates_are_refused(client: httpx.AsyncClient) -> None:
    """JSON escapes can contain them, but they are not valid Unicode; pairs are accepted."""
    rng = random.Random(3)

    async def post(text: str) -> httpx.Response:
        body = json.dumps({"prompt": "P", "max_tokens": 1, "echo": True}).replace("P", text)
        return await client.post("/v1/completions", content=body.encode())

    high, low = rng.randint(0xD800, 0xDBFF), rng.randint(0xDC00, 0xDFFF)
    bad = [f"\\u{high:04x}", f"\\u{low:04x}a", f"\\u{low:04x}\\u{high:04x}", f"x\\u{high:04x}\\n"]
    responses = await asyncio.gather(*map(post, [*bad, f"\\u{high:04x}\\u{low:04x}"]))
    assert [response.status_code for response in responses] == [400] * 4 + [200]
    character = chr(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00))
    assert responses[-1].json()["choices"][0]["text"].startswith(character)
    raw = await client.post("/v1/completions", content=b'{"prompt": "\xed\xa0\x80"}')
    assert raw.status_code == 400
