"""Several choices in one response: n, lists of prompts, echo."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from mesh.errors import ErrorKind, MeshError
from tests.gateway.fakes import LENGTH, FakeOrchestrator, Script
from tests.gateway.sse import events

MESSAGES = [{"role": "user", "content": "Hi"}]
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


async def streamed(client: httpx.AsyncClient, path: str, body: Any) -> list[dict[str, Any]]:
    """The chunks of a stream that ends with [DONE]."""
    async with client.stream("POST", path, json={**body, "stream": True}) as response:
        assert response.status_code == 200
        texts = [event.text async for event in events(response)]
    assert texts[-1] == "[DONE]"
    return [json.loads(text) for text in texts[:-1]]


def texts_of(chunks: list[dict[str, Any]]) -> dict[int, str]:
    """The text of each choice of a stream."""
    texts: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            text = choice.get("text", choice.get("delta", {}).get("content")) or ""
            texts[choice["index"]] = texts.get(choice["index"], "") + text
    return texts


async def test_n_choices_of_a_chat(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """Each choice has its index and a different seed; prompt tokens are counted once."""
    body = {"messages": MESSAGES, "n": 3, "seed": 2**63 - 1}
    answer = (await client.post(CHAT, json=body)).json()
    seeds = {request.sampling.seed for request in orchestrator.requests}  # type: ignore[attr-defined]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert {choice["message"]["content"] for choice in answer["choices"]} == {"Hello world"}
    assert seeds == {2**63 - 1, 2**63, 2**63 + 1}
    assert answer["usage"]["prompt_tokens"] == 7
    assert answer["usage"]["completion_tokens"] == 9
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 4}
    described = [request.api_request for request in orchestrator.requests]  # type: ignore[attr-defined]
    numbers = [(each.num_choices, each.choice_index) for each in described]
    assert sorted(numbers) == [(3, 0), (3, 1), (3, 2)]
    assert {(each.response_id, each.stream) for each in described} == {(answer["id"], False)}


async def test_streamed_choices_are_interleaved(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """Choices are generated concurrently; each has its role, text and finish reason."""
    orchestrator.script = Script(deltas=("a", "b", "c", "d"), seconds_before_delta=0.03)
    body = {"messages": MESSAGES, "n": 2, "stream_options": {"include_usage": True}}
    *chunks, last = await streamed(client, CHAT, body)
    choices = [chunk["choices"][0] for chunk in chunks]
    order = [choice["index"] for choice in choices if choice["delta"].get("content")]
    assert texts_of(chunks) == {0: "abcd", 1: "abcd"}
    assert order not in ([0] * 4 + [1] * 4, [1] * 4 + [0] * 4)
    assert [choice["index"] for choice in choices[:2]] == [0, 1]
    assert sorted(c["index"] for c in choices if c["finish_reason"] == "stop") == [0, 1]
    assert last["usage"]["completion_tokens"] == 8
    assert last["usage"]["total_tokens"] == 15


async def test_n_choices_of_several_prompts(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """Choice i * n + j is choice j of prompt i; text and token id prompts may be mixed."""
    body = {"prompt": ["ab", [1, 2, 3]], "n": 2, "echo": True}
    answer = (await client.post(COMPLETIONS, json=body)).json()
    chunks = await streamed(client, COMPLETIONS, body)
    expected = {0: "abHello world", 1: "abHello world", 2: "Hello world", 3: "Hello world"}
    assert {choice["index"]: choice["text"] for choice in answer["choices"]} == expected
    assert texts_of(chunks) == expected
    assert answer["usage"]["prompt_tokens"] == 14
    prompts = [list(r.token_ids.ids) or r.text for r in orchestrator.requests]  # type: ignore[attr-defined]
    assert sorted(map(str, prompts)) == ["[1, 2, 3]"] * 4 + ["ab"] * 4


async def test_echo_with_log_probabilities(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """The prompt's tokens come first; the very first has no log probability."""
    orchestrator.script = Script(logprobs=True, deltas=("é!", "x"))
    body = {"prompt": "héy", "echo": True, "logprobs": 1}
    answer = (await client.post(COMPLETIONS, json=body)).json()
    logprobs = answer["choices"][0]["logprobs"]
    assert answer["choices"][0]["text"] == "héyé!x"
    assert logprobs["tokens"] == ["h", "é", "y", "é!", "x"]
    assert logprobs["token_logprobs"] == [None, -1.0, -2.0, -0.25, -0.25]
    assert logprobs["text_offset"] == [0, 1, 2, 3, 5]
    assert logprobs["top_logprobs"][0] is None
    assert orchestrator.requests[0].sampling.num_prompt_logprobs == 1  # type: ignore[attr-defined]
    streams = await streamed(client, COMPLETIONS, body)
    parts = [c["choices"][0]["logprobs"] for c in streams if c["choices"][0]["logprobs"]]
    assert [offset for each in parts for offset in each["text_offset"]] == [0, 1, 2, 3, 5]


async def test_echo_with_max_tokens_0(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """With max_tokens 0 the response has the scored prompt and no generated token."""
    orchestrator.script = Script(logprobs=True, deltas=("x",), reason=LENGTH)
    body = {"prompt": "ab", "echo": True, "logprobs": 1, "max_tokens": 0}
    answer = (await client.post(COMPLETIONS, json=body)).json()
    [choice] = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("ab", "length")
    assert choice["logprobs"]["tokens"] == ["a", "b"]
    assert answer["usage"]["completion_tokens"] == 0
    assert texts_of(await streamed(client, COMPLETIONS, body)) == {0: "ab"}
    assert orchestrator.requests[0].sampling.max_tokens == 1  # type: ignore[attr-defined]
    assert orchestrator.requests[0].echo_in_parts  # type: ignore[attr-defined]


@pytest.mark.parametrize("stream", [False, True])
async def test_one_rejected_choice_rejects_the_request(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator, stream: bool
) -> None:
    """The response has the status of the error, even if other choices were accepted before."""
    orchestrator.refuse_after = 2
    orchestrator.script = Script(endless=True, seconds_before_delta=0.01)
    body = {"prompt": "a", "n": 4, "stream": stream}
    response = await client.post(COMPLETIONS, json=body)
    assert response.status_code == 429
    assert response.json()["error"]["type"] == "rate_limit_error"


async def test_one_failed_choice_ends_the_stream(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """The stream ends with an error event, without [DONE]; all choices are cancelled."""
    orchestrator.script = Script(failure=MeshError(ErrorKind.UNAVAILABLE, "lost"))
    body = {"messages": MESSAGES, "n": 3, "stream": True}
    wire = (await client.post(CHAT, json=body)).text
    assert "[DONE]" not in wire
    assert json.loads(wire.strip().rpartition("data: ")[2])["error"]["message"] == "lost"


async def test_a_disconnect_cancels_every_choice(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """The `client` fixture then waits until no upstream call runs."""
    orchestrator.script = Script(endless=True, seconds_before_delta=0.01)
    body = {"messages": MESSAGES, "n": 3, "stream": True}
    async with client.stream("POST", CHAT, json=body) as response:
        async for _ in response.aiter_bytes():
            if orchestrator.num_running == 3 and orchestrator.num_sent > 6:
                break
    assert len(orchestrator.requests) == 3
