"""The events of a response and the response without streaming."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response
from pydantic import BaseModel

from mesh.errors import ErrorKind, MeshError
from mesh.v1 import orchestrator_pb2
from tests.gateway.fakes import ABORT, LENGTH, FakeOrchestrator, Script
from tests.gateway.responses.events import events_of, joined, plain

TEXT = "response.output_text.delta"
REASONING = "response.reasoning_text.delta"
ARGUMENTS = "response.function_call_arguments.delta"
TOOLS = [{"type": "function", "name": "find", "parameters": {"type": "object"}, "strict": True}]


def piece(text: str = "", **fields: object) -> orchestrator_pb2.Delta:
    """A delta of one token."""
    return orchestrator_pb2.Delta(text=text, num_tokens=1, **fields)  # type: ignore[arg-type]


def call(index: int, arguments: str, name: str = "", id: str = "") -> orchestrator_pb2.Delta:
    """A piece of a tool call."""
    delta = piece()
    delta.tool_calls.add(index=index, id=id, name=name, arguments=arguments)
    return delta


MIXED: Sequence[str | orchestrator_pb2.Delta] = (
    piece(reasoning="Let me"),
    piece(reasoning=" think"),
    piece("I ", reasoning="."),
    "look é\u2028",
    call(0, "", "find", "call_1"),
    call(0, '{"a":'),
    call(0, "1}"),
    call(1, "{}", "find", "call_2"),
)


async def test_each_part_of_an_answer_is_an_item_with_its_events(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """Reasoning, text and calls; the response without streaming has the same items."""
    orchestrator.script = Script(deltas=MIXED)
    body: Any = {"input": "Hi", "tools": TOOLS, "metadata": {"a": "b"}}
    events = await events_of(client, **body)
    assert joined(events, REASONING) == "Let me think."
    assert joined(events, TEXT) == "I look é\u2028"
    assert joined(events, ARGUMENTS) == '{"a":1}{}'
    response = events[-1]["response"]
    assert [item["type"] for item in response["output"]] == [
        "reasoning", "message", "function_call", "function_call",
    ]  # fmt: skip
    reasoning, message, first, second = response["output"]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "Let me think."}]
    assert message["content"][0]["text"] == "I look é\u2028"
    assert (first["call_id"], first["name"], first["arguments"]) == ("call_1", "find", '{"a":1}')
    assert (second["call_id"], second["arguments"]) == ("call_2", "{}")
    assert {item["status"] for item in response["output"]} == {"completed"}
    usage = response["usage"]
    assert (usage["input_tokens"], usage["output_tokens"]) == (7, 8)
    assert usage["input_tokens_details"]["cached_tokens"] == 4
    assert usage["output_tokens_details"]["reasoning_tokens"] == 3
    whole = (await client.post("/v1/responses", json=body)).json()
    Response.model_validate(whole)
    assert plain(whole) == plain(response)
    assert whole["metadata"] == {"a": "b"}


async def test_the_order_of_the_events_of_a_text(client: httpx.AsyncClient) -> None:
    """As at OpenAI."""
    events = await events_of(client, input="Hi")
    assert [event["type"].removeprefix("response.") for event in events] == [
        *["created", "in_progress", "output_item.added", "content_part.added"],
        *["output_text.delta"] * 3,
        *["output_text.done", "content_part.done", "output_item.done", "completed"],
    ]
    assert events[3]["part"]["text"] == ""
    assert events[7]["text"] == "Hello world"


async def test_one_message_of_the_orchestrator_has_all_events(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """Start, text and finish that come at once."""
    orchestrator.script = Script(at_once=True)
    events = await events_of(client, input="Hi")
    assert joined(events, TEXT) == "Hello world"


async def test_an_empty_answer_has_no_items(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """It is complete all the same."""
    orchestrator.script = Script(deltas=())
    assert (await events_of(client, input="Hi"))[-1]["response"]["output"] == []


async def test_a_response_at_its_limit_is_incomplete(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """So is its last item."""
    orchestrator.script = Script(reason=LENGTH)
    response = (await events_of(client, input="Hi", max_output_tokens=3))[-1]["response"]
    assert response["status"] == response["output"][0]["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert orchestrator.requests[0].sampling.max_tokens == 3  # type: ignore[attr-defined]


async def test_log_probabilities(client: httpx.AsyncClient, orchestrator: FakeOrchestrator) -> None:
    """With the deltas, and with the whole text."""
    orchestrator.script = Script(logprobs=True)
    events = await events_of(client, input="Hi", top_logprobs=2)
    deltas = [event for event in events if event["type"] == TEXT]
    assert [token["token"] for e in deltas for token in e["logprobs"]] == ["Hello", " wor", "ld"]
    [part] = events[-1]["response"]["output"][0]["content"]
    assert [token["logprob"] for token in part["logprobs"]] == [-0.25] * 3
    assert [len(token["top_logprobs"]) for token in part["logprobs"]] == [2] * 3


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (MeshError(ErrorKind.UNAVAILABLE, "the engine is gone"), "server_error"),
        (MeshError(ErrorKind.OVERLOADED, "too many"), "rate_limit_exceeded"),
    ],
)
async def test_a_failure_in_mid_stream_is_the_last_event(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator, failure: MeshError, code: str
) -> None:
    """`response.failed`, with the reason."""
    orchestrator.script = Script(failure=failure)
    last = (await events_of(client, input="Hi"))[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["error"] == {"code": code, "message": failure.message}


async def test_an_aborted_response_has_failed(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """By an operator's CancelRequest."""
    orchestrator.script = Script(reason=ABORT)
    last = (await events_of(client, input="Hi"))[-1]
    assert last["response"]["error"]["message"] == "the request was ended by an operator"


async def test_a_refusal_has_its_status(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """Streamed, and not: nothing is sent before the orchestrator has accepted the request."""
    orchestrator.script = Script(refusal=MeshError(ErrorKind.OVERLOADED, "no place", retry_after=2))
    for stream in (False, True):
        response = await client.post("/v1/responses", json={"input": "Hi", "stream": stream})
        assert response.status_code == 429
        assert response.headers["retry-after"] == "2"


async def test_the_sdk_creates_and_streams(
    official: openai.AsyncOpenAI, orchestrator: FakeOrchestrator
) -> None:
    """Its accumulated response equals the events'; it reads text, calls and reasoning."""
    orchestrator.script = Script(deltas=MIXED)
    whole = await official.responses.create(input="Hi", model="fake", tools=TOOLS)  # type: ignore[arg-type]
    assert whole.output_text == "I look é\u2028"
    async with official.responses.stream(input="Hi", model="fake", tools=TOOLS) as stream:  # type: ignore[arg-type]
        texts = [e.delta async for e in stream if e.type == "response.output_text.delta"]
        final = await stream.get_final_response()
    assert "".join(texts) == final.output_text == whole.output_text
    assert [item.type for item in final.output] == [item.type for item in whole.output]


class Place(BaseModel):
    """What the model answers."""

    city: str
    days: int


async def test_the_sdk_parses_structured_output(
    official: openai.AsyncOpenAI, orchestrator: FakeOrchestrator
) -> None:
    """The schema reaches the orchestrator as a constraint, and the text is parsed."""
    orchestrator.script = Script(deltas=('{"city":', '"Rome","days":2}'))
    parsed = await official.responses.parse(input="Where?", model="fake", text_format=Place)
    assert parsed.output_parsed == Place(city="Rome", days=2)
    schema = orchestrator.requests[0].sampling.constraint.json_schema  # type: ignore[attr-defined]
    assert '"city"' in schema
