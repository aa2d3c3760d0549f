"""OpenAI's Python client against the gateway, and the bytes of the responses."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionChunk

from gateway.http.server import GatewayServer
from mesh.errors import ErrorKind, MeshError
from mesh.v1 import common_pb2
from tests.gateway.fakes import ABORT, LENGTH, FakeOrchestrator, Script

MESSAGES: Any = [{"role": "user", "content": "Hi"}]


@pytest.fixture
async def official(
    gateway: GatewayServer, client: httpx.AsyncClient
) -> AsyncIterator[openai.AsyncOpenAI]:
    """OpenAI's client with its defaults, except for the address and no retries."""
    url = f"http://127.0.0.1:{gateway.port}/v1"
    http = openai.DefaultAsyncHttpxClient(trust_env=False)
    async with openai.AsyncOpenAI(
        base_url=url, api_key="none", max_retries=0, http_client=http
    ) as official:
        yield official


async def read(stream: openai.AsyncStream[ChatCompletionChunk], texts: list[str | None]) -> None:
    """Append the text of each chunk to `texts`."""
    async for chunk in stream:
        texts.append(chunk.choices[0].delta.content)


async def test_chat_without_streaming(official: openai.AsyncOpenAI) -> None:
    """The client parses the response into its types."""
    answer = await official.chat.completions.create(model="fake", messages=MESSAGES)
    [choice] = answer.choices
    assert choice.message.content == "Hello world"
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "stop"
    assert answer.model == "fake"
    assert answer.id.startswith("chatcmpl-")
    assert answer.usage is not None
    assert answer.usage.total_tokens == 10
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 4


async def test_chat_streamed(official: openai.AsyncOpenAI, orchestrator: FakeOrchestrator) -> None:
    """Chunks are the role, the text, the finish reason and, with include_usage, the usage."""
    orchestrator.script = Script(reason=LENGTH)
    stream = await official.chat.completions.create(
        model="fake", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    *parts, last = chunks
    assert parts[0].choices[0].delta.role == "assistant"
    assert [part.choices[0].delta.content for part in parts] == ["", "Hello", " wor", "ld", None]
    assert [part.choices[0].finish_reason for part in parts] == [None] * 4 + ["length"]
    assert {part.usage for part in parts} == {None}
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 3
    assert len({chunk.id for chunk in chunks}) == 1


async def test_a_combined_upstream_message_is_split_into_chunks(
    official: openai.AsyncOpenAI, orchestrator: FakeOrchestrator
) -> None:
    """Start, text and finish in one gRPC message still become separate chunks, in order."""
    orchestrator.script = Script(at_once=True)
    stream = await official.chat.completions.create(model="fake", messages=MESSAGES, stream=True)
    parts = [chunk.choices[0] async for chunk in stream]
    assert [part.delta.content for part in parts] == ["", "Hello world", None]
    assert [part.finish_reason for part in parts] == [None, None, "stop"]


async def test_the_bytes_of_a_stream(client: httpx.AsyncClient) -> None:
    """Each event is one data line without an id; the last is [DONE]; usage only if requested."""
    body = {"messages": MESSAGES, "stream": True}
    response = await client.post("/v1/chat/completions", json=body)
    *events, done, rest = response.text.split("\n\n")
    assert all(event.startswith("data: {") for event in events)
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert (done, rest) == ("data: [DONE]", "")
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert not any("usage" in chunk for chunk in chunks)
    assert chunks[1]["choices"] == [
        {"index": 0, "delta": {"content": "Hello"}, "logprobs": None, "finish_reason": None}
    ]


async def test_chat_logprobs(official: openai.AsyncOpenAI, orchestrator: FakeOrchestrator) -> None:
    """Each token has its bytes and top log probabilities; -inf is encoded as -9999."""
    orchestrator.script = Script(logprobs=True, deltas=("Hé",))
    ask = {"model": "fake", "messages": MESSAGES, "logprobs": True, "top_logprobs": 2}
    whole = await official.chat.completions.create(**ask)  # type: ignore[call-overload]
    stream = await official.chat.completions.create(**ask, stream=True)  # type: ignore[call-overload]
    chunks = [chunk async for chunk in stream]
    [token] = whole.choices[0].logprobs.content
    assert chunks[1].choices[0].logprobs.content == [token]
    assert (token.token, token.bytes, token.logprob) == ("Hé", list("Hé".encode()), -0.25)
    assert [(top.token, top.logprob) for top in token.top_logprobs] == [("a", -0.5), ("b", -9999)]
    assert orchestrator.requests[0].sampling.num_logprobs == 2  # type: ignore[attr-defined]


async def test_completion_with_and_without_streaming(
    official: openai.AsyncOpenAI, orchestrator: FakeOrchestrator
) -> None:
    """A prompt is text or token ids."""
    create = official.completions.create
    whole = await create(model="fake", prompt="Hi")
    stream = await create(
        model="fake", prompt=[1, 2, 3], stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert whole.choices[0].text == "Hello world"
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == "Hello world"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage == whole.usage
    text, ids = orchestrator.requests
    assert text.text == "Hi"  # type: ignore[attr-defined]
    assert list(ids.token_ids.ids) == [1, 2, 3]  # type: ignore[attr-defined]


async def test_completion_logprobs(
    official: openai.AsyncOpenAI, orchestrator: FakeOrchestrator
) -> None:
    """text_offset continues from chunk to chunk."""
    orchestrator.script = Script(logprobs=True)
    ask = {"model": "fake", "prompt": "Hi", "logprobs": 2}
    whole = await official.completions.create(**ask)  # type: ignore[call-overload]
    stream = await official.completions.create(**ask, stream=True)  # type: ignore[call-overload]
    logprobs = whole.choices[0].logprobs
    offsets = [c.choices[0].logprobs.text_offset async for c in stream if c.choices[0].logprobs]
    assert logprobs.tokens == ["Hello", " wor", "ld"]
    assert logprobs.text_offset == [0, 5, 9]
    assert logprobs.top_logprobs[0] == {"a": -0.5, "b": -9999}
    assert offsets == [[0], [5], [9]]


async def test_every_parameter_reaches_the_orchestrator(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """Every sampling parameter is forwarded under its name in the protobuf contract."""
    floats = {
        "temperature": 0.5,
        "top_p": 0.25,
        "min_p": 0.125,
        "repetition_penalty": 1.5,
        "presence_penalty": -0.5,
        "frequency_penalty": 0.75,
    }
    whole = {"top_k": 5, "min_tokens": 2, "seed": -1, "ignore_eos": True}
    extra = {"max_tokens": 3, "max_completion_tokens": 9, "stop": ["a", "b"], "user": "me"}
    body = {"model": "fake", "messages": MESSAGES, **floats, **whole, **extra}
    await client.post("/v1/chat/completions", json={**body, "logit_bias": {"5": -100}})
    [request] = orchestrator.requests
    assert request.sampling == common_pb2.SamplingParams(  # type: ignore[attr-defined]
        **{**floats, **whole, "seed": 2**64 - 1}, max_tokens=9, logit_bias={5: -100.0}
    )
    assert list(request.stop) == ["a", "b"]  # type: ignore[attr-defined]


async def test_null_and_absent_parameters_are_not_forwarded(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """Null and absent both mean the model's default; a stop string is a list of one."""
    nothing = {"temperature": None, "max_tokens": None, "stop": None, "stream": None}
    await client.post("/v1/chat/completions", json={"messages": MESSAGES, **nothing})
    await client.post("/v1/completions", json={"prompt": "", "stop": "x", "top_k": -1})
    first, second = orchestrator.requests
    assert first.sampling == common_pb2.SamplingParams()  # type: ignore[attr-defined]
    assert list(second.stop) == ["x"]  # type: ignore[attr-defined]
    assert second.WhichOneof("prompt") == "text"  # type: ignore[attr-defined]
    assert second.sampling.top_k == 0  # type: ignore[attr-defined]


async def test_messages_parts_and_tools_reach_the_orchestrator(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """Text parts are joined; tools, tool calls and template variables are passed on as JSON."""
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    tool = {"type": "function", "function": {"name": "f", "description": "é"}}
    body = {
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "a"}]},
            {
                "role": "user",
                "name": "me",
                "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}],
            },
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "4", "tool_call_id": "c1"},
        ],
        "tools": [tool],
        "chat_template_kwargs": {"enable_thinking": False},
    }
    for choice in ("auto", "none"):
        response = await client.post("/v1/chat/completions", json={**body, "tool_choice": choice})
        assert response.status_code == 200
    chat = orchestrator.requests[0].chat  # type: ignore[attr-defined]
    assert [message.content for message in chat.messages] == ["a", "b\nc", "", "4"]
    assert chat.messages[1].name == "me"
    assert json.loads(chat.messages[2].tool_calls_json) == [call]
    assert chat.messages[3].tool_call_id == "c1"
    assert json.loads(chat.tools_json) == [tool]
    assert json.loads(chat.template_kwargs_json) == {"enable_thinking": False}
    assert orchestrator.requests[1].chat.tools_json == ""  # type: ignore[attr-defined]


async def test_models(official: openai.AsyncOpenAI) -> None:
    """Models can be listed, and retrieved by a name that may contain slashes."""
    names = [model.id async for model in official.models.list()]
    model = await official.models.retrieve("org/other")
    assert names == ["fake", "org/other"]
    assert model.id == "org/other"
    assert model.created == 1700000000
    with pytest.raises(openai.NotFoundError) as caught:
        await official.models.retrieve("org/none")
    assert caught.value.code == "model_not_found"


ERRORS = [
    (ErrorKind.INVALID_REQUEST, openai.BadRequestError, None),
    (ErrorKind.CONTEXT_TOO_LONG, openai.BadRequestError, "context_length_exceeded"),
    (ErrorKind.MODEL_NOT_FOUND, openai.NotFoundError, "model_not_found"),
    (ErrorKind.OVERLOADED, openai.RateLimitError, "rate_limit_exceeded"),
    (ErrorKind.UNAVAILABLE, openai.InternalServerError, "unavailable"),
    (ErrorKind.DEADLINE, openai.InternalServerError, "deadline_exceeded"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("kind", "exception", "code"), ERRORS)
async def test_upstream_errors_raise_the_clients_exceptions(
    official: openai.AsyncOpenAI,
    orchestrator: FakeOrchestrator,
    stream: bool,
    kind: ErrorKind,
    exception: type[openai.APIStatusError],
    code: str | None,
) -> None:
    """An error before the first event is raised by `create`, also for a stream."""
    orchestrator.script = Script(refusal=MeshError(kind, "no"))
    with pytest.raises(exception, match="no") as caught:
        await official.chat.completions.create(model="fake", messages=MESSAGES, stream=stream)
    assert caught.value.code == code


async def test_a_mid_stream_error_is_raised_by_the_client(
    official: openai.AsyncOpenAI, client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """The client raises an error event of the stream; no [DONE] follows it."""
    orchestrator.script = Script(failure=MeshError(ErrorKind.UNAVAILABLE, "no replica is left"))
    stream = await official.chat.completions.create(model="fake", messages=MESSAGES, stream=True)
    texts: list[str | None] = []
    with pytest.raises(openai.APIError, match="no replica is left"):
        await read(stream, texts)
    body = {"prompt": "Hi", "stream": True}
    wire = (await client.post("/v1/completions", json=body)).text
    assert texts == ["", "Hello", " wor", "ld"]
    assert "[DONE]" not in wire
    last = json.loads(wire.strip().rpartition("data: ")[2])
    assert last["error"]["code"] == "unavailable"


async def test_an_abort_is_an_error(
    official: openai.AsyncOpenAI, orchestrator: FakeOrchestrator
) -> None:
    """OpenAI has no finish reason for an abort, so the gateway answers with an error."""
    orchestrator.script = Script(reason=ABORT)
    with pytest.raises(openai.APIStatusError, match="ended by an operator") as caught:
        await official.chat.completions.create(model="fake", messages=MESSAGES)
    assert caught.value.status_code == 499
    stream = await official.chat.completions.create(model="fake", messages=MESSAGES, stream=True)
    with pytest.raises(openai.APIError, match="ended by an operator"):
        await read(stream, [])


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/api/v1/search"])
async def test_the_final_event_reports_resumptions(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator, path: str
) -> None:
    """`x-weir-resumed` is where the finish reason is, and absent if no engine was lost."""
    ask = {"model": "fake", "messages": MESSAGES, "prompt": "Hi", "query": "Hi"}
    for number in (0, 2):
        orchestrator.script = Script(num_resumptions=number)
        whole = (await client.post(path, json=ask)).json()
        streamed = await client.post(path, json={**ask, "stream": True, "streaming": True})
        lines = [line for line in streamed.text.splitlines() if line.startswith("data: {")]
        last = json.loads(lines[-1].removeprefix("data: "))
        for answer in (whole, last):
            [end] = answer.get("choices", [answer])
            assert end["finish_reason"] == "stop"
            assert end.get("x-weir-resumed", 0) == number
            assert ("x-weir-resumed" in end) == (number > 0)
