"""What clients of the SMG router get from Weir's engines; `make test-smg` runs these tests."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import jsonschema
import pytest
from openai import AsyncOpenAI, BadRequestError
from smg_grpc_proto.generated import vllm_engine_pb2, vllm_engine_pb2_grpc

from mesh.rpc.channel import open_channel
from tests.smg.conftest import Routed

MODEL = "demo"
MESSAGES: Any = [{"role": "user", "content": "What is a weir?"}]
LONG: Any = {"max_tokens": 1500, "extra_body": {"ignore_eos": True}}
SCHEMA = {
    "type": "object",
    "properties": {"place": {"enum": ["Bonn", "Ulm"]}, "days": {"enum": [1, 2, 3]}},
    "required": ["place", "days"],
    "additionalProperties": False,
}
TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}


@pytest.fixture
async def client(routed: Routed) -> AsyncIterator[AsyncOpenAI]:
    """OpenAI's client of the router."""
    async with AsyncOpenAI(
        base_url=f"{routed.router.url}/v1", api_key="none", max_retries=0, timeout=200
    ) as client:
        yield client


async def loads(routed: Routed) -> dict[str, int]:
    """Running and waiting sequences of each engine."""
    found = {}
    for name, address in routed.engines.items():
        channel = open_channel(address)
        stub = vllm_engine_pb2_grpc.VllmEngineStub(channel)
        response = await stub.GetLoads(
            vllm_engine_pb2.GetLoadsRequest(), timeout=30, wait_for_ready=True
        )
        found[name] = response.loads[0].num_total_reqs
        await channel.close()
    return found


async def until(routed: Routed, condition: Callable[[dict[str, int]], bool], what: str) -> float:
    """Wait until the engines' loads are as wanted; returns the seconds."""
    began = time.monotonic()
    while not condition(found := await loads(routed)):
        assert time.monotonic() - began < 60, f"{what} never happened: {found}"
        await asyncio.sleep(0.02)
    return time.monotonic() - began


def idle(found: dict[str, int]) -> bool:
    return sum(found.values()) == 0


async def test_chat_streamed_and_not(client: AsyncOpenAI) -> None:
    """The same greedy text and usage; several deltas."""
    whole = await client.chat.completions.create(
        model=MODEL, messages=MESSAGES, temperature=0, max_tokens=40
    )
    stream = await client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        temperature=0,
        max_tokens=40,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    deltas = [
        c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content
    ]
    assert len(deltas) > 3
    assert "".join(deltas) == whole.choices[0].message.content
    assert whole.usage is not None
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens > len(deltas) / 2
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens


async def test_choices_and_logprobs(client: AsyncOpenAI) -> None:
    """n=2 gives two choices, each with the log probabilities of its tokens."""
    answer = await client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        n=2,
        seed=5,
        temperature=1.5,
        max_tokens=12,
        logprobs=True,
        top_logprobs=2,
        extra_body={"ignore_eos": True},
    )
    assert sorted(choice.index for choice in answer.choices) == [0, 1]
    for choice in answer.choices:
        assert choice.logprobs is not None
        assert len(choice.logprobs.content or []) == 12
        assert all(len(each.top_logprobs) == 2 for each in choice.logprobs.content or [])


@pytest.mark.parametrize("stream", [False, True])
async def test_tools_by_constrained_decoding(client: AsyncOpenAI, stream: bool) -> None:
    """A forced tool call has arguments of its schema, from a model that knows no tools."""
    wanted: Any = {"type": "function", "function": {"name": "weather"}}
    answer: Any = await client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        tools=[TOOL],
        tool_choice=wanted,
        max_tokens=200,
        temperature=0,
        stream=stream,
    )
    if stream:
        pieces = [c.choices[0].delta.tool_calls or [] async for c in answer if c.choices]
        calls = [call for piece in pieces for call in piece]
        name = next(call.function.name for call in calls if call.function.name)
        arguments = "".join(call.function.arguments or "" for call in calls)
    else:
        (call,) = answer.choices[0].message.tool_calls
        name, arguments = call.function.name, call.function.arguments
    assert name == "weather"
    jsonschema.validate(json.loads(arguments), SCHEMA)


async def test_schemas_are_kept_to(client: AsyncOpenAI) -> None:
    """response_format json_schema."""
    form: Any = {"type": "json_schema", "json_schema": {"name": "trip", "schema": SCHEMA}}
    answer = await client.chat.completions.create(
        model=MODEL, messages=MESSAGES, response_format=form, max_tokens=200, temperature=0
    )
    jsonschema.validate(json.loads(answer.choices[0].message.content or ""), SCHEMA)


async def test_a_stop_string_ends_the_sequence_in_the_engine(
    client: AsyncOpenAI, routed: Routed
) -> None:
    """The router finds the string as well but would let the engine run on to max_tokens."""
    await until(routed, idle, "the engines are idle")
    answer = await client.chat.completions.create(
        model=MODEL, messages=MESSAGES, temperature=0, stop=["found"], **LONG
    )
    assert answer.choices[0].message.content == "Nothing was "
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens < 1000
    assert await until(routed, idle, "the engines are idle") < 3


async def test_leaving_frees_the_slot(client: AsyncOpenAI, routed: Routed) -> None:
    """The router aborts the request of a client that leaves, streamed or not."""
    stream = await client.chat.completions.create(
        model=MODEL, messages=MESSAGES, stream=True, **LONG
    )
    async for _ in stream:
        break
    assert not idle(await loads(routed))
    await stream.close()
    await until(routed, idle, "the slot of the stream is free")

    waiting = asyncio.create_task(
        client.chat.completions.create(model=MODEL, messages=MESSAGES, **LONG)
    )
    await until(routed, lambda found: not idle(found), "the engine runs it")
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await until(routed, idle, "the slot of the unstreamed request is free")


async def test_too_long_a_prompt_is_the_clients_error(client: AsyncOpenAI) -> None:
    """400 with the engine's message."""
    with pytest.raises(BadRequestError, match="maximum context length is 2048 tokens"):
        await client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=100_000)


async def test_both_engines_take_part_and_load_is_read(routed: Routed, client: AsyncOpenAI) -> None:
    """Streams of distinct prompts run on both; the router subscribes to the KV events of both."""

    async def one(number: int) -> None:
        text: Any = [{"role": "user", "content": f"{number} " * 20}]
        await client.chat.completions.create(
            model=MODEL, messages=text, max_tokens=150, extra_body={"ignore_eos": True}
        )

    running = asyncio.gather(*(one(number) for number in range(16)))
    await until(routed, lambda found: min(found.values()) > 0, "both engines run streams")
    await running
    assert all(worker.get("is_healthy") for worker in routed.router.workers())
    log = routed.log.read_text(errors="replace")
    assert log.count("KV event stream connected") >= 2
    assert "structural_tag" not in log


async def test_a_lost_engine_is_left_out(routed: Routed, client: AsyncOpenAI) -> None:
    """Its health checks find an engine that is killed; the other one serves. Runs last."""
    routed.processes._processes["two"].send_signal(signal.SIGKILL)
    began = time.monotonic()
    while sum(bool(worker.get("is_healthy")) for worker in routed.router.workers()) != 1:
        assert time.monotonic() - began < 60, routed.router.workers()
        await asyncio.sleep(0.1)
    for number in range(4):
        text: Any = [{"role": "user", "content": f"after {number}"}]
        answer = await client.chat.completions.create(model=MODEL, messages=text, max_tokens=5)
        assert answer.choices[0].finish_reason in ("stop", "length")
    async with httpx.AsyncClient(trust_env=False, timeout=5) as plain:
        assert (await plain.get(f"{routed.router.url}/health")).is_success
