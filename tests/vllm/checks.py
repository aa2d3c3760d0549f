"""Every kind of request in front of vLLM, for each of its protocols."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx

from tests.conformance.__main__ import run, table
from tests.e2e.support.stack import Stack
from tests.vllm.ask import (
    CHAT,
    COMPLETIONS,
    GREEDY,
    NUM_TOKENS,
    PROMPTS,
    completed,
    echoed,
    events_of,
    generated,
    load_of,
    post,
    refused,
    wait_idle,
)
from tests.vllm.servers import VllmServer

SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "size": {"enum": ["s", "m", "l"]}},
    "required": ["ok", "size"],
    "additionalProperties": False,
}
ASK: dict[str, Any] = {
    "messages": [{"role": "user", "content": "hello"}],
    "max_tokens": 300,
    "seed": 1,
}
TOKEN = 400

LONG = 1900
"""Tokens that vLLM generates in several times `ABORT_SECONDS`."""

ABORT_SECONDS = 3.0
"""Time until an engine is idle again, on a busy machine."""


class RequestChecks:
    """Tests; a subclass is in a module with the fixtures `stack` and `engines`."""

    async def test_the_conformance_suite_passes(self, stack: Stack) -> None:
        """The same checks as in front of Weir's own engine, but for those that need embeddings."""
        with stack.another_gateway("--keep-alive-seconds", "0.002") as url:
            results = await run(url, "")
        outcomes = [result.outcome for result in results]
        assert set(outcomes) == {"ok", "skipped"}, table(results)
        assert outcomes.count("skipped") == 2, table(results)  # rerank and score

    async def test_greedy_tokens_equal_vllms_offline_output(
        self, client: httpx.AsyncClient, offline: list[list[int]]
    ) -> None:
        """Each prompt alone and all at once: the text is that of the offline tokens."""
        wanted = []
        for prompt, tokens in zip(PROMPTS, offline, strict=True):
            both = await echoed(client, prompt + tokens)
            wanted.append(both.removeprefix(await echoed(client, prompt)))
        alone = [await completed(client, prompt, NUM_TOKENS) for prompt in PROMPTS]
        together = await asyncio.gather(*(completed(client, each, NUM_TOKENS) for each in PROMPTS))
        assert alone == wanted
        assert list(together) == wanted

    async def test_a_streams_deltas_and_usage(self, client: httpx.AsyncClient) -> None:
        """The text is the unstreamed one, nothing is appended twice, and the counts are right."""
        whole = await completed(client, PROMPTS[1], 20)
        usage = {"include_usage": True}
        events = events_of(client, prompt=PROMPTS[1], max_tokens=20, stream_options=usage)
        chunks = [chunk async for chunk in events]
        assert "".join(c["text"] for chunk in chunks for c in chunk["choices"]) == whole
        assert chunks[-1]["usage"]["completion_tokens"] == 20
        assert chunks[-1]["usage"]["prompt_tokens"] == len(PROMPTS[1])

    async def test_a_cached_prefix_is_reported(self, client: httpx.AsyncClient) -> None:
        """vLLM's blocks have 128 tokens on a CPU."""
        prompt = [number % 300 + 400 for number in range(300)]
        answers = [
            await post(client, COMPLETIONS, **GREEDY, prompt=prompt, max_tokens=2) for _ in range(2)
        ]
        assert answers[1]["usage"]["prompt_tokens_details"]["cached_tokens"] == 256

    async def test_log_probabilities_of_prompt_and_output(self, client: httpx.AsyncClient) -> None:
        """One for each token but the prompt's first, with the most likely ones in order."""
        ask = {**GREEDY, "prompt": PROMPTS[3], "max_tokens": 6}
        answer = await post(client, COMPLETIONS, **ask, logprobs=3, echo=True)
        logprobs = answer["choices"][0]["logprobs"]
        assert len(logprobs["tokens"]) == len(PROMPTS[3]) + 6
        assert logprobs["token_logprobs"][0] is None
        assert all(value <= 0 for value in logprobs["token_logprobs"][1:])
        tops, values = logprobs["top_logprobs"][-6:], logprobs["token_logprobs"][-6:]
        for top, value in zip(tops, values, strict=True):
            assert list(top.values()) == sorted(top.values(), reverse=True)
            assert max(top.values()) == value  # greedy

    async def test_sampled_choices(self, client: httpx.AsyncClient) -> None:
        """n=2 returns two choices, a seed repeats them, penalties and a bias have an effect."""
        ask = {"prompt": PROMPTS[2], "max_tokens": 16, "ignore_eos": True, "n": 2, "seed": 11}
        ask["temperature"] = 2
        first = await post(client, COMPLETIONS, **ask)
        again = await post(client, COMPLETIONS, **ask)
        texts = [choice["text"] for choice in first["choices"]]
        assert texts == [choice["text"] for choice in again["choices"]]
        assert texts[0] != texts[1]
        biased = {**GREEDY, "prompt": [500], "max_tokens": 4, "logit_bias": {str(TOKEN): 60}}
        same = await post(client, COMPLETIONS, **biased)
        assert same["choices"][0]["text"] == await echoed(client, [TOKEN] * 4)
        penalties = {"frequency_penalty": 2, "presence_penalty": 2, "repetition_penalty": 10}
        penalised = await post(client, COMPLETIONS, **biased, **penalties)
        assert penalised["choices"][0]["text"] != same["choices"][0]["text"]

    async def test_stops(
        self, client: httpx.AsyncClient, stack: Stack, engines: list[VllmServer]
    ) -> None:
        """A stop string is trimmed and frees the slot; a stop token ends the text."""
        whole = await completed(client, PROMPTS[4], 20)
        stop = whole[8:12]
        ask = {**GREEDY, "prompt": PROMPTS[4], "max_tokens": LONG}
        stopped = await post(client, COMPLETIONS, **ask, stop=stop)
        await wait_idle(engines, ABORT_SECONDS)
        assert stopped["choices"][0]["text"] == whole[: whole.index(stop)]
        assert stopped["choices"][0]["finish_reason"] == "stop"
        sampling = {"temperature": 0, "max_tokens": 9, "logit_bias": {TOKEN: 100.0}}
        sampling["stop_token_ids"] = [TOKEN]
        prompt = {"ids": [500]}
        text, finish = await generated(stack, token_ids=prompt, sampling=sampling)
        assert (text, finish.usage.completion_tokens) == ("", 1)
        sampling["min_tokens"] = 3
        _, finish = await generated(stack, token_ids=prompt, sampling=sampling)
        assert finish.usage.completion_tokens == 4

    async def test_forms(self, client: httpx.AsyncClient, stack: Stack) -> None:
        """A JSON schema, any JSON object, a regular expression, a grammar."""
        json_schema = {"name": "answer", "schema": SCHEMA}
        by_schema = {"type": "json_schema", "json_schema": json_schema}
        answer = await post(client, CHAT, **ASK, response_format=by_schema)
        value = json.loads(answer["choices"][0]["message"]["content"])
        assert sorted(value) == ["ok", "size"]
        sampling: dict[str, Any] = {"max_tokens": 60, "ignore_eos": True}
        prompt = {"ids": PROMPTS[0]}
        sampling["constraint"] = {"regex": "[ab]{3}-[0-9]"}
        text, finish = await generated(stack, token_ids=prompt, sampling=sampling)
        assert len(text) == 5
        assert set(text[:3]) <= set("ab")
        assert finish.usage.completion_tokens < 60
        sampling["constraint"] = {"grammar": 'start: "yes" | "no"'}
        text, _ = await generated(stack, token_ids=prompt, sampling=sampling)
        assert text in ("yes", "no")
        sampling["constraint"] = {"json_object": True}
        text, _ = await generated(stack, token_ids=prompt, sampling=sampling)
        assert text.lstrip().startswith("{")

    async def test_forced_tool_calls(self, client: httpx.AsyncClient) -> None:
        """Constrained decoding writes a call in the model's format; the parser reads it."""
        function = {"name": "order", "parameters": SCHEMA}
        ask = {**ASK, "tools": [{"type": "function", "function": function}]}
        choice = {"type": "function", "function": {"name": "order"}}
        answer = await post(client, CHAT, **ask, tool_choice=choice)
        [call] = answer["choices"][0]["message"]["tool_calls"]
        assert call["function"]["name"] == "order"
        assert sorted(json.loads(call["function"]["arguments"])) == ["ok", "size"]
        assert answer["choices"][0]["finish_reason"] == "tool_calls"

    async def test_a_disconnect_frees_the_slot(
        self, client: httpx.AsyncClient, engines: list[VllmServer]
    ) -> None:
        """The engine reports no request shortly after the client has gone."""
        await wait_idle(engines, 30.0)
        async for _ in events_of(client, prompt=PROMPTS[0], max_tokens=LONG):
            assert sum([await load_of(engine) for engine in engines]) == 1
            break
        await wait_idle(engines, ABORT_SECONDS)

    async def test_refusals_name_the_field(self, client: httpx.AsyncClient) -> None:
        """What vLLM refuses, and what Weir refuses before."""
        error = await refused(client, COMPLETIONS, prompt=[500] * 3000, max_tokens=4)
        assert error["code"] == "context_length_exceeded"
        ask = {"prompt": [500], "max_tokens": 4}
        error = await refused(client, COMPLETIONS, **ask, logit_bias={"9999": 1})
        assert error["param"] == "logit_bias"
        assert "9999" in error["message"]
        schema = {"type": "array", "uniqueItems": True}
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        error = await refused(client, CHAT, **ASK, response_format=form)
        assert error["param"] == "response_format.json_schema.schema"
        assert "uniqueItems" in error["message"]
