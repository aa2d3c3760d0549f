"""Anthropic's Python client against the gateway, and the events of the responses."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from hashlib import sha256
from typing import Any, get_args

import anthropic
import httpx
import httpx2
import pytest
from anthropic.types import (
    Message,
    RawMessageStreamEvent,
)
from anthropic.types.shared.error_type import ErrorType
from pydantic import BaseModel, TypeAdapter

from gateway.http.server import GatewayServer
from mesh.errors import ErrorKind, MeshError
from mesh.v1 import common_pb2, orchestrator_pb2
from tests.gateway.conftest import StartGateway, client_of
from tests.gateway.fakes import ABORT, LENGTH, FakeOrchestrator, Script

MESSAGES: Any = [{"role": "user", "content": "Hi"}]
ASK: Any = {"model": "fake", "max_tokens": 9, "messages": MESSAGES}
TOOLS: Any = [
    {
        "name": name,
        "description": f"The {name}.",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
    }
    for name in ("weather", "forecast")
]
EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


def call(index: int, id: str = "", name: str = "", arguments: str = "") -> orchestrator_pb2.Delta:
    """A delta of one token with a piece of a tool call."""
    delta = orchestrator_pb2.Delta(num_tokens=1)
    delta.tool_calls.add(index=index, id=id, name=name, arguments=arguments)
    return delta


TURN = (
    orchestrator_pb2.Delta(reasoning="Let me ", num_tokens=1),
    orchestrator_pb2.Delta(reasoning="think é", num_tokens=1),
    orchestrator_pb2.Delta(text="I will", num_tokens=1),
    orchestrator_pb2.Delta(text=" look.", num_tokens=1),
    call(0, "call_1", "weather"),
    call(0, arguments='{"city": "Ro'),
    call(0, arguments='me"}'),
    call(1, "call_2", "forecast", "{}"),
)
"""Reasoning, text and two calls."""


@pytest.fixture
async def official(
    gateway: GatewayServer, client: httpx.AsyncClient
) -> AsyncIterator[anthropic.AsyncAnthropic]:
    """Anthropic's client with its defaults, except for the address and no retries."""
    http = httpx2.AsyncClient(trust_env=False)
    async with anthropic.AsyncAnthropic(
        base_url=f"http://127.0.0.1:{gateway.port}",
        api_key="none",
        max_retries=0,
        http_client=http,
    ) as official:
        yield official


def check_fields(model: Any, path: str = "") -> None:
    """Fails if the model, or a model inside it, has a field that Anthropic's types do not have."""
    if isinstance(model, list):
        for each in model:
            check_fields(each, path)
    if isinstance(model, BaseModel):
        assert not model.model_extra, (path, model.model_extra)
        for name in type(model).model_fields:
            check_fields(getattr(model, name), f"{path}.{name}")


def events_of(text: str) -> list[dict[str, Any]]:
    """The events of a stream; each has the name that its `type` says, and one line of data."""
    events = []
    for event in text.removesuffix("\n\n").split("\n\n"):
        name, data = event.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


async def test_a_message_without_streaming(official: anthropic.AsyncAnthropic) -> None:
    """Every field is in the client's types; cached tokens are not input tokens."""
    answer = await official.messages.create(**ASK)
    check_fields(Message.model_validate(answer.to_dict(), strict=True))
    [block] = answer.content
    assert block.type == "text"
    assert block.text == "Hello world"
    assert answer.id.startswith("msg_")
    assert (answer.role, answer.model, answer.type) == ("assistant", "fake", "message")
    assert (answer.stop_reason, answer.stop_sequence) == ("end_turn", None)
    usage = answer.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (3, 4, 3)
    assert usage.service_tier == "standard"


async def test_the_events_of_a_stream(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """Each event is valid in the client's types and in the documented order."""
    orchestrator.script = Script(deltas=TURN)
    response = await client.post("/v1/messages", json={**ASK, "stream": True})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = events_of(response.text)
    for event in events:
        if event["type"] != "ping":
            check_fields(EVENT.validate_python(event, strict=True))
    start, ping, *blocks, delta, stop = events
    assert start["message"]["content"] == []
    assert start["message"]["stop_reason"] is None
    assert start["message"]["usage"]["input_tokens"] == 7
    assert ping == {"type": "ping"}
    assert stop == {"type": "message_stop"}
    assert delta["delta"]["stop_reason"] == "tool_use"
    assert delta["usage"]["output_tokens"] == 8
    assert delta["usage"]["cache_read_input_tokens"] == 4
    assert delta["usage"]["input_tokens"] == 3
    assert delta["usage"]["output_tokens_details"] == {"thinking_tokens": 2}
    order = [(each["type"].removeprefix("content_block_"), each["index"]) for each in blocks]
    assert order == [
        *[("start", 0), ("delta", 0), ("delta", 0), ("delta", 0), ("stop", 0)],
        *[("start", 1), ("delta", 1), ("delta", 1), ("stop", 1)],
        *[("start", 2), ("delta", 2), ("delta", 2), ("stop", 2)],
        *[("start", 3), ("delta", 3), ("stop", 3)],
    ]
    kinds = [each["delta"]["type"] for each in blocks if "delta" in each]
    assert kinds == [
        *["thinking_delta", "thinking_delta", "signature_delta"],
        *["text_delta", "text_delta"],
        *["input_json_delta", "input_json_delta", "input_json_delta"],
    ]


async def test_the_stream_is_the_message(
    official: anthropic.AsyncAnthropic, orchestrator: FakeOrchestrator
) -> None:
    """The client assembles the same blocks, reasons and usage from the events."""
    orchestrator.script = Script(deltas=TURN)
    whole = await official.messages.create(**ASK, tools=TOOLS)
    kinds: list[str] = []
    async with official.messages.stream(**ASK, tools=TOOLS) as stream:
        async for event in stream:
            kinds.append(event.type)
        streamed = await stream.get_final_message()
    assert streamed.to_dict() | {"id": ""} == whole.to_dict() | {"id": ""}
    thinking, text, first, second = whole.content
    assert thinking.type == "thinking"
    assert thinking.thinking == "Let me think é"
    assert thinking.signature == sha256("Let me think é".encode()).hexdigest()
    assert text.type == "text"
    assert text.text == "I will look."
    assert first.type == second.type == "tool_use"
    assert (first.id, first.name, first.input) == ("call_1", "weather", {"city": "Rome"})
    assert (second.id, second.name, second.input) == ("call_2", "forecast", {})
    assert {"text", "thinking", "input_json", "message_stop"} <= set(kinds)


async def test_thinking_can_be_left_out(
    official: anthropic.AsyncAnthropic, orchestrator: FakeOrchestrator
) -> None:
    """`display: omitted` keeps the block and its signature."""
    orchestrator.script = Script(deltas=TURN)
    thinking: Any = {"type": "adaptive", "display": "omitted"}
    whole = await official.messages.create(**ASK, thinking=thinking)
    async with official.messages.stream(**ASK, thinking=thinking) as stream:
        streamed = await stream.get_final_message()
    assert streamed.to_dict()["content"] == whole.to_dict()["content"]
    [first, *_] = whole.content
    assert first.type == "thinking"
    assert (first.thinking, len(first.signature)) == ("", 64)
    kwargs = json.loads(orchestrator.requests[0].chat.template_kwargs_json)  # type: ignore[attr-defined]
    assert kwargs == {"enable_thinking": True, "thinking": True}


REASONS: list[tuple[Script, int, str, str | None]] = [
    (Script(reason=LENGTH), 3, "max_tokens", None),
    (Script(reason=LENGTH), 9, "model_context_window_exceeded", None),
    (Script(stop_string="###"), 9, "stop_sequence", "###"),
    (Script(deltas=TURN, reason=LENGTH), 8, "max_tokens", None),
    (Script(deltas=()), 9, "end_turn", None),
]


async def test_stop_reasons(
    official: anthropic.AsyncAnthropic, orchestrator: FakeOrchestrator
) -> None:
    """Streamed and not."""
    for script, max_tokens, reason, sequence in REASONS:
        orchestrator.script = script
        ask = {**ASK, "max_tokens": max_tokens, "stop_sequences": ["###", "\n"]}
        whole = await official.messages.create(**ask)
        async with official.messages.stream(**ask) as stream:
            streamed = await stream.get_final_message()
        for message in (whole, streamed):
            assert (message.stop_reason, message.stop_sequence) == (reason, sequence)
        request: Any = orchestrator.requests[-1]
        assert list(request.stop) == ["###", "\n"]
        assert request.fit_max_tokens


async def test_arguments_that_are_cut_off_or_no_object(
    official: anthropic.AsyncAnthropic, orchestrator: FakeOrchestrator
) -> None:
    """Cut-off ones as far as they go, as the client reads a stream; others stay as text."""
    deltas = (
        call(0, "a", "weather", '{"city": "Rome", "days": [1, 2, "thr'),
        call(1, "b", "weather", "[1]"),
        call(2, "c", "weather", "{'city'}"),
        call(3, "d", "weather"),
    )
    orchestrator.script = Script(deltas=deltas)
    answer = await official.messages.create(**ASK)
    inputs = [block.input for block in answer.content if block.type == "tool_use"]
    assert inputs == [
        {"city": "Rome", "days": [1, 2]},
        {"INVALID_JSON": "[1]"},
        {"INVALID_JSON": "{'city'}"},
        {},
    ]


async def test_a_conversation_becomes_chat_messages(
    official: anthropic.AsyncAnthropic, orchestrator: FakeOrchestrator
) -> None:
    """System blocks, thinking, calls and results have the places that chat templates read."""
    result: Any = [
        {"type": "text", "text": "Sunny"},
        {"type": "document", "title": "D", "source": {"type": "text", "data": "in Rome"}},
    ]
    messages: Any = [
        {"role": "user", "content": "Weather?"},
        {"role": "user", "content": [{"type": "text", "text": "In Rome."}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm", "signature": "x"},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "Let me see."},
                {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "é"}},
                {"type": "tool_use", "id": "c2", "name": "weather", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": result},
                {"type": "tool_result", "tool_use_id": "c2", "content": "No.", "is_error": True},
                {"type": "text", "text": "And?"},
            ],
        },
        {"role": "assistant", "content": "It is"},
    ]
    system: Any = [
        {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "Be kind."},
    ]
    await official.messages.create(**{**ASK, "messages": messages}, system=system, tools=TOOLS)
    chat = orchestrator.requests[0].chat  # type: ignore[attr-defined]
    assert [(m.role, m.content, m.tool_call_id) for m in chat.messages] == [
        ("system", "Be brief.\nBe kind.", ""),
        ("user", "Weather?\nIn Rome.", ""),
        ("assistant", "Let me see.", ""),
        ("tool", "Sunny\nD\nin Rome", "c1"),
        ("tool", "Error: No.", "c2"),
        ("user", "And?", ""),
        ("assistant", "It is", ""),
    ]
    assert chat.messages[2].reasoning_content == "Hm"
    calls = json.loads(chat.messages[2].tool_calls_json)
    assert [call["id"] for call in calls] == ["c1", "c2"]
    assert calls[0]["function"] == {"name": "weather", "arguments": '{"city": "é"}'}
    assert chat.continue_final_message
    tools = json.loads(chat.tools_json)
    assert tools[0] == {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather.",
            "parameters": TOOLS[0]["input_schema"],
        },
    }


CHOICES: list[tuple[Any, tuple[bool, str, bool] | None]] = [
    ({"type": "auto"}, (False, "", False)),
    ({"type": "auto", "disable_parallel_tool_use": True}, (False, "", True)),
    ({"type": "any"}, (True, "", False)),
    ({"type": "any", "disable_parallel_tool_use": True}, (True, "", True)),
    ({"type": "tool", "name": "weather"}, (False, "weather", False)),
    ({"type": "none"}, None),
]


async def test_tool_choices(
    official: anthropic.AsyncAnthropic, orchestrator: FakeOrchestrator
) -> None:
    """`none` leaves the tools out."""
    for given, expected in CHOICES:
        await official.messages.create(**ASK, tools=TOOLS, tool_choice=given)
        request: Any = orchestrator.requests[-1]
        choice = request.tool_choice
        assert bool(request.chat.tools_json) == (expected is not None)
        assert (choice.required, choice.name, choice.single) == (expected or (False, "", False))


async def test_ignored_values_are_named(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """Unknown fields, tools of Anthropic's own, and the budget of thinking."""
    tools = [{"type": "web_search_20250305", "name": "web_search", "max_uses": 2}, TOOLS[0]]
    body = {
        **ASK,
        "max_tokens": 2000,
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Hi", "x": 1, "citations": None}]}
        ],
        "tools": [*tools, {**TOOLS[1], "strict": True}],
        "mcp_servers": [],
        "metadata": {"user_id": "u"},
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "cache_control": {"type": "ephemeral"},
    }
    response = await client.post("/v1/messages?beta=true", json=body)
    assert response.status_code == 200, response.text
    assert response.headers["x-ignored-fields"].split(", ") == [
        *["messages[0].content[0].x", "tools[2].strict", "mcp_servers"],
        *["tools[0]", "thinking.budget_tokens"],
    ]
    [request] = orchestrator.requests
    tools = json.loads(request.chat.tools_json)  # type: ignore[attr-defined]
    assert [tool["function"]["name"] for tool in tools] == ["weather", "forecast"]


async def test_structured_output(
    official: anthropic.AsyncAnthropic, orchestrator: FakeOrchestrator
) -> None:
    """The client's `parse` sends a schema, which constrains the generation."""

    class City(BaseModel):
        name: str

    orchestrator.script = Script(deltas=('{"name"', ': "Rome"}'))
    answer = await official.messages.parse(**ASK, output_format=City)
    assert answer.parsed_output == City(name="Rome")
    sampling = orchestrator.requests[0].sampling  # type: ignore[attr-defined]
    assert json.loads(sampling.constraint.json_schema)["required"] == ["name"]


async def test_tokens_are_counted(
    official: anthropic.AsyncAnthropic, orchestrator: FakeOrchestrator
) -> None:
    """The prompt is the same as that of the message."""
    fields: Any = {"messages": MESSAGES, "system": "Be brief.", "tools": TOOLS}
    counted = await official.messages.count_tokens(model="fake", **fields)
    await official.messages.create(model="fake", max_tokens=9, **fields)
    assert counted.input_tokens == 7
    assert counted.to_dict() == {"input_tokens": 7}
    count, create = orchestrator.requests
    assert count.chat == create.chat  # type: ignore[attr-defined]
    assert count.model == "fake"  # type: ignore[attr-defined]


async def test_max_tokens_zero_reads_the_prompt_only(
    official: anthropic.AsyncAnthropic, orchestrator: FakeOrchestrator
) -> None:
    """The orchestrator generates one token, which is not returned."""
    answer = await official.messages.create(**{**ASK, "max_tokens": 0})
    assert answer.content == []
    assert (answer.stop_reason, answer.usage.output_tokens) == ("max_tokens", 0)
    assert orchestrator.requests[0].sampling.max_tokens == 1  # type: ignore[attr-defined]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": None}, "max_tokens is required"),
    ({"max_tokens": -1}, "max_tokens must be at least 0, given -1"),
    ({"messages": []}, "messages must have at least 1 item, given 0"),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content must have at least 1"),
    (
        {"messages": [{"role": "tool", "content": "x"}]},
        "messages[0].role must be 'user', 'assistant' or 'system', given \"tool\"",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
        "messages[0].content[0].type must be 'text', 'search_result', ",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]},
        "messages[0].content[0].text must be a string, given 3",
    ),
    (
        {"messages": [{"role": "system", "content": [{"type": "thinking", "thinking": "x"}]}]},
        "messages[0].content[0].type must be one of 'text' in a message of role system",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a"}]}]},
        'messages[0].content[0].tool_use_id must be the id of an earlier tool_use block, given "a"',
    ),
    (
        {
            "messages": [
                *MESSAGES,
                {
                    "role": "assistant",
                    "content": [{"type": "tool_use", "id": "a", "name": "b", "input": {}}],
                },
            ]
        },
        "messages[1] must be followed by a message with a tool_result block, given none",
    ),
    ({"tool_choice": {"type": "any"}}, "tool_choice must come with tools, given none"),
    ({"tool_choice": {"type": "some"}}, "tool_choice.type must be 'auto', 'any', 'tool' or 'none'"),
    ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools[0].name must be 1 to 128 letters"),
    ({"tools": [{"name": "a"}]}, "tools[0].input_schema is required"),
    (
        {"tools": [{"name": "a", "input_schema": {"type": "array"}}]},
        "tools[0].input_schema.type must be 'object', given \"array\"",
    ),
    ({"stop_sequences": ["a", ""]}, "stop_sequences[1] must have 1 to 256 characters, given 0"),
    ({"stop_sequences": ["a"] * 17}, "stop_sequences must have at most 16 items, given 17"),
    (
        {"thinking": {"type": "enabled", "budget_tokens": 5}},
        "thinking.budget_tokens must be at least 1024, given 5",
    ),
    (
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        "thinking.budget_tokens must be less than max_tokens (9), given 1024",
    ),
    ({"system": 3}, "system must be an array, given 3"),
    (
        {
            "tools": TOOLS,
            "tool_choice": {"type": "any"},
            "output_config": {"format": {"type": "json_schema", "schema": {}}},
        },
        "output_config.format must be absent where a tool must be called",
    ),
]


async def test_bad_input_is_named(client: httpx.AsyncClient) -> None:
    """With the field as the client wrote it, the limit and the given value."""
    for fields, message in BAD:
        response = await client.post("/v1/messages", json={**ASK, **fields})
        error = response.json()
        assert response.status_code == 400, response.text
        assert (error["type"], error["error"]["type"]) == ("error", "invalid_request_error")
        assert error["error"]["message"].startswith(message)
        assert error["request_id"] == response.headers["request-id"]


REFUSALS: list[tuple[MeshError, int, str, type[anthropic.APIStatusError]]] = [
    (
        MeshError(ErrorKind.INVALID_REQUEST, "no"),
        400,
        "invalid_request_error",
        anthropic.BadRequestError,
    ),
    (
        MeshError(ErrorKind.CONTEXT_TOO_LONG, "no"),
        400,
        "invalid_request_error",
        anthropic.BadRequestError,
    ),
    (MeshError(ErrorKind.MODEL_NOT_FOUND, "no"), 404, "not_found_error", anthropic.NotFoundError),
    (
        MeshError(ErrorKind.OVERLOADED, "no", retry_after=3),
        529,
        "overloaded_error",
        anthropic.OverloadedError,
    ),
    (
        MeshError(ErrorKind.UNAVAILABLE, "no"),
        503,
        "overloaded_error",
        anthropic.ServiceUnavailableError,
    ),
    (MeshError(ErrorKind.DEADLINE, "no"), 504, "timeout_error", anthropic.GatewayTimeoutError),
    (MeshError(ErrorKind.INTERNAL, "no"), 500, "api_error", anthropic.InternalServerError),
]


async def test_refusals_raise_the_clients_exceptions(
    official: anthropic.AsyncAnthropic, orchestrator: FakeOrchestrator
) -> None:
    """With Anthropic's status and type, the request's id, and the time to retry."""
    for refusal, status, kind, raised in REFUSALS:
        orchestrator.script = Script(refusal=refusal)
        for stream in (False, True):
            with pytest.raises(raised) as caught:
                await official.messages.create(**ASK, stream=stream)
            error: Any = caught.value
            assert (error.status_code, error.type) == (status, kind)
            assert kind in get_args(ErrorType)
            assert error.request_id
            assert error.body["request_id"] == error.request_id
            assert ("retry-after" in error.response.headers) == (status in (503, 529))


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (MeshError(ErrorKind.UNAVAILABLE, "lost"), "overloaded_error"),
        (MeshError(ErrorKind.DEADLINE, "late"), "timeout_error"),
        (None, "api_error"),
    ],
)
async def test_a_failure_in_mid_stream_is_an_error_event(
    official: anthropic.AsyncAnthropic,
    orchestrator: FakeOrchestrator,
    failure: MeshError | None,
    kind: str,
) -> None:
    """The last event; an operator's abort is one too."""
    orchestrator.script = Script(failure=failure, reason=ABORT)
    texts: list[str] = []

    async def read() -> None:
        async with official.messages.stream(**ASK) as stream:
            async for text in stream.text_stream:
                texts.append(text)

    with pytest.raises(anthropic.APIStatusError) as caught:
        await read()
    assert "".join(texts) == "Hello world"
    assert caught.value.type == kind


async def test_every_error_of_the_paths_has_anthropics_form(
    client: httpx.AsyncClient, gateway: GatewayServer
) -> None:
    """Also those that no endpoint raises; other paths keep OpenAI's form."""
    large = b" " * (gateway.dependencies.settings.max_body_bytes + 1)
    cases = [
        (await client.post("/v1/messages/unknown", json=ASK), 404, "not_found_error"),
        (await client.get("/v1/messages"), 405, "invalid_request_error"),
        (await client.post("/v1/messages", content=large), 413, "request_too_large"),
        (await client.post("/v1/messages", content=b"{"), 400, "invalid_request_error"),
        (
            await client.post("/v1/messages", json=ASK, headers={"content-encoding": "gzip"}),
            415,
            "invalid_request_error",
        ),
        (
            await client.post("/v1/messages", json=ASK, headers={"origin": "http://evil.example"}),
            403,
            "permission_error",
        ),
        (
            await client.post(
                "/v1/messages/count_tokens", json=ASK, headers={"host": "evil.example"}
            ),
            421,
            "invalid_request_error",
        ),
    ]
    for response, status, kind in cases:
        assert response.status_code == status, response.text
        error = response.json()
        assert error["type"] == "error"
        assert error["error"]["type"] == kind
        assert error["request_id"] == response.headers["request-id"]
    other = await client.post("/v1/messagess", json=ASK)
    assert other.json()["error"]["code"] == "not_found"
    assert "request-id" not in other.headers


async def test_a_drain_has_anthropics_form(
    start_gateway: StartGateway, orchestrator: FakeOrchestrator
) -> None:
    """503 while the gateway drains."""
    async with start_gateway() as server, client_of(server) as client:
        server.dependencies.drain.begin()
        response = await client.post("/v1/messages", json=ASK)
    assert response.status_code == 503
    assert response.json()["error"]["type"] == "overloaded_error"


async def test_a_silent_stream_is_pinged(
    start_gateway: StartGateway, orchestrator: FakeOrchestrator
) -> None:
    """With Anthropic's event, not with a comment."""
    orchestrator.script = Script(seconds_before_delta=0.2)
    async with (
        start_gateway(keep_alive_seconds=0.05) as server,
        client_of(server) as client,
    ):
        response = await client.post("/v1/messages", json={**ASK, "stream": True})
    kinds = [event["type"] for event in events_of(response.text)]
    assert kinds.count("ping") > 3
    assert ": keep-alive" not in response.text


async def test_sampling_parameters_pass_unchanged(
    official: anthropic.AsyncAnthropic, orchestrator: FakeOrchestrator
) -> None:
    """Those of Anthropic, and those that all generation APIs share."""
    extra = {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "seed": 3}
    await official.messages.create(**ASK, extra_body=extra)
    sampling = orchestrator.requests[0].sampling  # type: ignore[attr-defined]
    expected = common_pb2.SamplingParams(max_tokens=9, temperature=0.5, top_p=0.9, top_k=5, seed=3)
    assert sampling == expected
