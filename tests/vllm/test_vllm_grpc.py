"""Weir in front of `vllm serve --grpc`: every kind of request, cancellation, lost engines."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
import pytest
from smg_grpc_proto.generated import vllm_engine_pb2, vllm_engine_pb2_grpc

from tests.conformance.__main__ import run, table
from tests.e2e.support.stack import Stack
from tests.vllm.servers import NAME, VllmServer, offline_tokens, vllm_servers

PROMPTS = [[7 * number + step for step in range(5 + number)] for number in range(8)]
NUM_TOKENS = 48
GREEDY = {"model": NAME, "temperature": 0, "ignore_eos": True}
FRONT = ("tokenizer", "orchestrator", "gateway")


@pytest.fixture(scope="session")
def offline(executable: Path, model: Path, logs: Path) -> list[list[int]]:
    """Greedy tokens of `PROMPTS` from vLLM's offline API."""
    return offline_tokens(executable, model, logs / "offline.log", PROMPTS, NUM_TOKENS)


@pytest.fixture(scope="session")
def engines(
    executable: Path, model: Path, logs: Path, offline: list[list[int]]
) -> Iterator[list[VllmServer]]:
    """Two engines, started after the offline one has ended: its memory is needed."""
    with vllm_servers(executable, model, logs, [["--grpc"], ["--grpc"]]) as servers:
        yield servers


@pytest.fixture(scope="session")
def stack(
    engines: list[VllmServer], stack_settings: dict[str, str], tmp_path_factory: Any
) -> Iterator[Stack]:
    """A stack in front of both engines. Their protocol is found, not configured."""
    targets = ",".join(engine.address for engine in engines)
    settings = {**stack_settings, "INFERENCE_HOST": targets}
    stack = Stack(tmp_path_factory.mktemp("stack"), None, settings)
    try:
        stack.start(*FRONT)
        stack.wait_ready()
        yield stack
    finally:
        stack.stop()


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of the gateway."""
    async with httpx.AsyncClient(base_url=stack.url, timeout=120, trust_env=False) as client:
        yield client


async def post(client: httpx.AsyncClient, path: str, **fields: Any) -> Any:
    """The JSON of a response with status 200."""
    response = await client.post(path, json={"model": NAME, **fields})
    assert response.status_code == 200, response.text
    return response.json()


async def events_of(client: httpx.AsyncClient, **fields: Any) -> AsyncIterator[dict[str, Any]]:
    """The chunks of a streamed completion."""
    body = {**GREEDY, "stream": True, **fields}
    async with client.stream("POST", "/v1/completions", json=body) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                yield json.loads(line.removeprefix("data: "))


async def load_of(engine: VllmServer) -> int:
    """Requests in the engine, as it reports them."""
    async with grpc.aio.insecure_channel(engine.address) as channel:
        stub = vllm_engine_pb2_grpc.VllmEngineStub(channel)
        response = await stub.GetLoads(vllm_engine_pb2.GetLoadsRequest())
        return sum(each.num_running_reqs + each.num_waiting_reqs for each in response.loads)


async def wait_idle(engines: list[VllmServer], seconds: float) -> None:
    """Returns when no engine has a request; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while any([await load_of(engine) for engine in engines]):
        assert time.monotonic() < deadline, f"busy after {seconds} s"
        await asyncio.sleep(0.02)


async def test_the_conformance_suite_passes(stack: Stack) -> None:
    """The same checks as in front of Weir's own engine."""
    with stack.another_gateway("--keep-alive-seconds", "0.002") as url:
        results = await run(url, "")
    assert {result.outcome for result in results} == {"ok"}, table(results)


async def test_greedy_tokens_equal_vllms_offline_output(
    client: httpx.AsyncClient, offline: list[list[int]]
) -> None:
    """Each prompt alone and all at once: the text is that of the offline tokens."""
    wanted = [
        await decoded(client, prompt, tokens)
        for prompt, tokens in zip(PROMPTS, offline, strict=True)
    ]
    alone = [await completed(client, prompt, NUM_TOKENS) for prompt in PROMPTS]
    together = await asyncio.gather(*(completed(client, each, NUM_TOKENS) for each in PROMPTS))
    assert alone == wanted
    assert together == wanted


async def completed(client: httpx.AsyncClient, prompt: list[int], max_tokens: int) -> str:
    """The greedy completion of a prompt."""
    fields = {**GREEDY, "prompt": prompt, "max_tokens": max_tokens}
    answer = await post(client, "/v1/completions", **fields)
    assert answer["usage"]["completion_tokens"] == max_tokens
    text: str = answer["choices"][0]["text"]
    return text


async def decoded(client: httpx.AsyncClient, prompt: list[int], tokens: list[int]) -> str:
    """The text of tokens after a prompt: what `echo` adds to the prompt's own."""
    whole = await echoed(client, prompt + tokens)
    return whole.removeprefix(await echoed(client, prompt))


async def echoed(client: httpx.AsyncClient, prompt: list[int]) -> str:
    """The text of token ids."""
    answer = await post(client, "/v1/completions", prompt=prompt, max_tokens=0, echo=True)
    text: str = answer["choices"][0]["text"]
    return text


async def test_a_streams_deltas_and_usage(client: httpx.AsyncClient) -> None:
    """The text is the unstreamed one, nothing is appended twice, and the counts are right."""
    whole = await post(client, "/v1/completions", **GREEDY, prompt=PROMPTS[1], max_tokens=20)
    chunks = [
        chunk
        async for chunk in events_of(
            client, prompt=PROMPTS[1], max_tokens=20, stream_options={"include_usage": True}
        )
    ]
    text = "".join(c["text"] for chunk in chunks for c in chunk["choices"])
    assert text == whole["choices"][0]["text"]
    assert chunks[-1]["usage"]["completion_tokens"] == 20
    assert chunks[-1]["usage"]["prompt_tokens"] == len(PROMPTS[1])


async def test_a_cached_prefix_is_reported(client: httpx.AsyncClient) -> None:
    """vLLM's blocks have 128 tokens on a CPU."""
    prompt = [number % 300 + 5 for number in range(300)]
    for _ in range(2):
        answer = await post(client, "/v1/completions", **GREEDY, prompt=prompt, max_tokens=2)
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 256


async def test_log_probabilities_of_prompt_and_output(client: httpx.AsyncClient) -> None:
    """One for each token, the first prompt token excepted, with the most likely ones in order."""
    answer = await post(
        client, "/v1/completions", **GREEDY, prompt=PROMPTS[3], max_tokens=6, logprobs=3, echo=True
    )
    logprobs = answer["choices"][0]["logprobs"]
    assert len(logprobs["tokens"]) == len(PROMPTS[3]) + 6
    assert logprobs["token_logprobs"][0] is None
    assert all(value <= 0 for value in logprobs["token_logprobs"][1:])
    tops, values = logprobs["top_logprobs"][-6:], logprobs["token_logprobs"][-6:]
    for top, value in zip(tops, values, strict=True):
        assert list(top.values()) == sorted(top.values(), reverse=True)
        assert max(top.values()) == value  # greedy


async def test_sampled_choices(client: httpx.AsyncClient) -> None:
    """n=2 returns two choices; a seed repeats them; penalties and a bias have an effect."""
    ask = {"prompt": PROMPTS[2], "max_tokens": 16, "ignore_eos": True, "n": 2, "seed": 11}
    first = await post(client, "/v1/completions", **ask)
    again = await post(client, "/v1/completions", **ask)
    texts = [choice["text"] for choice in first["choices"]]
    assert texts == [choice["text"] for choice in again["choices"]]
    assert texts[0] != texts[1]
    biased = await post(
        client, "/v1/completions", **GREEDY, prompt=[9], max_tokens=4, logit_bias={"42": 100}
    )
    assert biased["choices"][0]["text"] == await echoed(client, [42] * 4)
    penalised = await post(
        client,
        "/v1/completions",
        **GREEDY,
        prompt=[9],
        max_tokens=4,
        logit_bias={"42": 20},
        frequency_penalty=2,
        presence_penalty=2,
        repetition_penalty=10,
    )
    assert penalised["choices"][0]["text"] != biased["choices"][0]["text"]


async def test_stops(client: httpx.AsyncClient, engines: list[VllmServer]) -> None:
    """A stop string is trimmed and frees the slot; a stop token ends the text; min_tokens holds."""
    whole = await completed(client, PROMPTS[4], 400)
    stop = whole[8:12]
    ask = {**GREEDY, "prompt": PROMPTS[4], "max_tokens": 400}
    stopped = await post(client, "/v1/completions", **ask, stop=stop)
    await wait_idle(engines, 1.0)
    assert stopped["choices"][0]["text"] == whole[: whole.index(stop)]
    assert stopped["choices"][0]["finish_reason"] == "stop"
    biased = {**GREEDY, "prompt": [9], "logit_bias": {"42": 100}, "stop_token_ids": [42]}
    ended = await post(client, "/v1/completions", **biased, max_tokens=9)
    assert ended["choices"][0]["text"] == ""
    assert ended["choices"][0]["finish_reason"] == "stop"
    held = await post(client, "/v1/completions", **biased, max_tokens=9, min_tokens=3)
    assert held["usage"]["completion_tokens"] == 4


SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "size": {"enum": ["s", "m", "l"]}},
    "required": ["ok", "size"],
    "additionalProperties": False,
}
ASK = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 300, "seed": 1}


async def test_forms(client: httpx.AsyncClient) -> None:
    """A JSON schema, any JSON object, a regular expression, a grammar."""
    path = "/v1/chat/completions"
    json_schema = {"name": "answer", "schema": SCHEMA}
    by_schema = {"type": "json_schema", "json_schema": json_schema}
    answer = await post(client, path, **ASK, response_format=by_schema)
    value = json.loads(answer["choices"][0]["message"]["content"])
    assert sorted(value) == ["ok", "size"]
    answer = await post(client, path, **ASK, structured_outputs={"regex": "[ab]{3}-[0-9]"})
    text = answer["choices"][0]["message"]["content"]
    assert len(text) == 5
    assert set(text[:3]) <= set("ab")
    grammar = 'start: "yes" | "no"'
    answer = await post(client, path, **ASK, structured_outputs={"grammar": grammar})
    assert answer["choices"][0]["message"]["content"] in ("yes", "no")


async def test_forced_tool_calls(client: httpx.AsyncClient) -> None:
    """Constrained decoding writes a call in the model's format; the parser reads it."""
    function = {"name": "order", "parameters": SCHEMA}
    ask = {**ASK, "tools": [{"type": "function", "function": function}]}
    answer = await post(
        client,
        "/v1/chat/completions",
        **ask,
        tool_choice={"type": "function", "function": {"name": "order"}},
    )
    [call] = answer["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "order"
    assert sorted(json.loads(call["function"]["arguments"])) == ["ok", "size"]
    assert answer["choices"][0]["finish_reason"] == "tool_calls"


async def test_a_disconnect_frees_the_slot(
    client: httpx.AsyncClient, engines: list[VllmServer]
) -> None:
    """The engine reports no request shortly after the client has gone."""
    await wait_idle(engines, 5.0)
    async for _ in events_of(client, prompt=[5], max_tokens=1500):
        assert sum([await load_of(engine) for engine in engines]) == 1
        break
    await wait_idle(engines, 1.0)


async def refused(client: httpx.AsyncClient, path: str, **fields: Any) -> dict[str, Any]:
    """The error of a response with status 400."""
    response = await client.post(path, json={"model": NAME, **fields})
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


async def test_refusals_name_the_field(client: httpx.AsyncClient) -> None:
    """What vLLM refuses, and what Weir refuses before."""
    path = "/v1/completions"
    error = await refused(client, path, prompt=[5] * 3000, max_tokens=4)
    assert error["code"] == "context_length_exceeded"
    error = await refused(client, path, prompt=[5], max_tokens=4, logit_bias={"9999": 1})
    assert error["param"] == "logit_bias"
    assert "9999" in error["message"]
    schema = {"type": "array", "uniqueItems": True}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    error = await refused(client, "/v1/chat/completions", **ASK, response_format=form)
    assert error["param"] == "response_format.json_schema.schema"
    assert "uniqueItems" in error["message"]
    error = await refused(client, "/v1/embeddings", input="text")
    assert error["param"] == "input"


async def test_a_killed_engines_streams_continue(
    client: httpx.AsyncClient, engines: list[VllmServer]
) -> None:
    """SIGKILL of one of two engines under 8 streams: every text is the undisturbed one.

    The last test of this file: the engine is lost.
    """
    wanted = await asyncio.gather(*(completed(client, each, 600) for each in PROMPTS))
    texts = ["" for _ in PROMPTS]
    resumed = [0 for _ in PROMPTS]
    running = asyncio.Barrier(len(PROMPTS) + 1)

    async def read(number: int) -> None:
        async for chunk in events_of(client, prompt=PROMPTS[number], max_tokens=600):
            if not texts[number]:
                await running.wait()
            for choice in chunk["choices"]:
                texts[number] += choice["text"]
                resumed[number] += choice.get("x-weir-resumed", 0)

    async with asyncio.TaskGroup() as tasks:
        for number in range(len(PROMPTS)):
            tasks.create_task(read(number))
        await running.wait()
        loads = [await load_of(engine) for engine in engines]
        assert min(loads) > 0, loads
        engines[0].kill()
    assert texts == wanted
    assert sum(resumed) == loads[0], resumed
