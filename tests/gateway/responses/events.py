"""Reads a stream of a response, and checks each event against the types of OpenAI's SDK."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, get_args

import httpx
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel

EVENTS: dict[str, type[BaseModel]] = {
    get_args(model.model_fields["type"].annotation)[0]: model
    for model in get_args(get_args(ResponseStreamEvent)[0])
}
"""The SDK's model of each type of event."""

Event = dict[str, Any]


async def events_of(client: httpx.AsyncClient, **body: object) -> list[Event]:
    """The checked events of a stream; fails unless the status is 200."""
    response = await client.post("/v1/responses", json={**body, "stream": True})
    assert response.status_code == 200, response.text
    return parse_events(response.text)


def parse_events(text: str) -> list[Event]:
    """Parse a stream, and check names, numbers, types, and the order of the events."""
    events = parse_part(text)
    check_order(events)
    return events


def parse_part(text: str) -> list[Event]:
    """Parse a part of a stream, and check names and types of the events."""
    *frames, rest = text.split("\n\n")
    assert rest == ""
    events = []
    for frame in frames:
        if frame.startswith(":"):
            continue  # a comment keeps the connection alive
        name, data = frame.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        EVENTS[event["type"]].model_validate(event)
        events.append(event)
    return events


def check_order(events: list[Event]) -> None:
    """Numbers ascend by one; each item is added, and done once; the last event ends the stream."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"] for event in events]
    begin = ["response.created", "response.in_progress"]
    if events[0]["response"]["background"]:
        begin.insert(1, "response.queued")
    # One that the orchestrator refuses in the background has never been in progress.
    assert kinds[: len(begin)] == begin or kinds == [*begin[:-1], "response.failed"]
    last = kinds[-1].removeprefix("response.")
    assert last in ("completed", "incomplete", "failed")
    response = events[-1]["response"]
    assert response["status"] == last
    Response.model_validate(response)
    if last == "failed":
        return
    for name in ("output_item.added", "output_item.done"):
        indexes = [e["output_index"] for e in events if e["type"] == f"response.{name}"]
        assert indexes == list(range(len(response["output"])))
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == response["output"]


def joined(events: Iterable[Event], kind: str) -> str:
    """The deltas of one kind of event."""
    return "".join(event["delta"] for event in events if event["type"] == kind)


def plain(response: dict[str, Any]) -> dict[str, Any]:
    """A response without what differs between two responses to the same request."""
    text = json.dumps(response).replace(response["id"].removeprefix("resp_"), "ID")
    made: dict[str, Any] = json.loads(text)
    return {**made, "created_at": 0, "completed_at": 0}
