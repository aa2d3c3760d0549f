"""web_search and file_search: Weir's retriever, and annotations for supported citations."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from mesh.v1 import orchestrator_pb2
from tests.gateway.fakes import FakeOrchestrator, Script
from tests.gateway.responses.events import events_of, joined, plain
from tests.gateway.responses.test_events import TEXT, call

TEXTS = ("A weir is a dam.", " [1]", " It is old. [2]")
ANSWER = "".join(TEXTS)
# The first sentence is supported by its source, the second is not.
DETAILS = ((1, (0, 16), (0, 9)), (2, (21, 31), None))
WEB: Any = {"type": "web_search"}


def generations(orchestrator: FakeOrchestrator) -> list[orchestrator_pb2.GenerateRequest]:
    """The generations that were requested."""
    made = orchestrator_pb2.GenerateRequest
    return [request for request in orchestrator.requests if isinstance(request, made)]


@pytest.fixture
def asked(orchestrator: FakeOrchestrator) -> FakeOrchestrator:
    """An orchestrator whose model calls a search, and then answers."""
    answer = Script(deltas=TEXTS, citation_details=DETAILS)
    calls = Script(deltas=["Let me see.", call(0, '{"query": "weirs"}', "web_search", "call_1")])
    orchestrator.script = answer
    orchestrator.scripts = [calls]
    return orchestrator


async def test_the_model_calls_a_search(client: httpx.AsyncClient, asked: FakeOrchestrator) -> None:
    """The call becomes a search item; its results are the sources of the answer."""
    events = await events_of(client, input="What is a weir?", tools=[WEB])
    response = events[-1]["response"]
    first, search, message = response["output"]
    assert first["content"][0]["text"] == "Let me see."
    assert search["status"] == "completed"
    assert search["action"] == {"type": "search", "query": "weirs"}
    kinds = [event["type"] for event in events if "web_search_call" in event["type"]]
    prefix = "response.web_search_call."
    assert kinds == [prefix + each for each in ("in_progress", "searching", "completed")]
    assert message["content"][0]["text"] == ANSWER
    before, after = generations(asked)
    [tool] = json.loads(before.chat.tools_json)
    assert tool["function"]["name"] == "web_search"
    assert [each.url for each in after.grounding.sources] == [
        "https://example.org/weir", "https://example.org/dam",
    ]  # fmt: skip
    assert [m.role for m in after.chat.messages] == ["user", "assistant", "tool"]
    # Both generations are counted.
    assert response["usage"]["input_tokens"] == 14
    assert response["usage"]["output_tokens"] == 5


async def test_supported_citations_are_annotated(
    client: httpx.AsyncClient, asked: FakeOrchestrator
) -> None:
    """The range is that of the citation in the text; unsupported ones have no annotation."""
    scripts = list(asked.scripts)
    events = await events_of(client, input="What?", tools=[WEB])
    [part] = events[-1]["response"]["output"][-1]["content"]
    assert part["annotations"] == [
        {
            "type": "url_citation",
            "start_index": 17,
            "end_index": 20,
            "url": "https://example.org/weir",
            "title": "Weir",
        }
    ]
    assert ANSWER[17:20] == "[1]"
    [added] = [event for event in events if event["type"].endswith("annotation.added")]
    assert added["annotation"] == part["annotations"][0]
    asked.scripts = scripts
    whole = await client.post("/v1/responses", json={"input": "What?", "tools": [WEB]})
    assert plain(whole.json()) == plain(events[-1]["response"])


@pytest.mark.parametrize("choice", [WEB, "required"])
async def test_a_forced_search_needs_no_model_to_write_the_query(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator, choice: Any
) -> None:
    """Its query is the user's last message, so it works with every model."""
    orchestrator.script = Script(deltas=TEXTS, citation_details=DETAILS)
    items = [{"role": "user", "content": "Old"}, {"role": "user", "content": "What is\na weir?"}]
    include = ["web_search_call.action.sources"]
    body: Any = {"input": items, "tools": [WEB], "tool_choice": choice, "include": include}
    events = await events_of(client, **body)
    search, message = events[-1]["response"]["output"]
    assert search["action"]["query"] == "What is a weir?"
    assert [source["url"] for source in search["action"]["sources"]] == [
        "https://example.org/weir", "https://example.org/dam",
    ]  # fmt: skip
    assert len(message["content"][0]["annotations"]) == 1
    assert joined(events, TEXT) == ANSWER
    [generation] = generations(orchestrator)
    assert len(generation.grounding.sources) == 2
    assert not generation.tool_choice.required


async def test_file_search_has_its_own_item(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """With the passages, if they are included."""
    orchestrator.script = Script(deltas=TEXTS, citation_details=DETAILS)
    tool = {"type": "file_search", "vector_store_ids": ["vs"], "max_num_results": 2}
    body: Any = {"input": "What?", "tools": [tool], "tool_choice": {"type": "file_search"}}
    events = await events_of(client, **body, include=["file_search_call.results"])
    search = events[-1]["response"]["output"][0]
    assert (search["type"], search["queries"]) == ("file_search_call", ["What?"])
    assert [result["filename"] for result in search["results"]] == ["Weir", "Dam"]
    response = await client.post("/v1/responses", json=body)
    assert response.headers["x-ignored-fields"] == "tools[0].vector_store_ids"
    assert response.json()["output"][0]["results"] is None
    assert orchestrator.requests[-2].num_results == 2  # type: ignore[attr-defined]


async def test_searches_are_bounded(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """A model that keeps searching is not offered the tool again."""
    orchestrator.script = Script(deltas=[call(0, "not JSON", "web_search", "c")])
    whole = (await client.post("/v1/responses", json={"input": "What?", "tools": [WEB]})).json()
    searches = [item for item in whole["output"] if item["type"] == "web_search_call"]
    assert [each["action"]["query"] for each in searches] == ["What?"] * 4
    assert [bool(g.chat.tools_json) for g in generations(orchestrator)] == [True] * 4 + [False]


async def test_functions_beside_a_search(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """The response ends with the client's call, after the search."""
    both = [call(0, "{}", "web_search", "a"), call(1, '{"x":1}', "find", "b")]
    orchestrator.script = Script(deltas=both)
    body: Any = {"input": "What?", "tools": [WEB, {"type": "function", "name": "find"}]}
    events = await events_of(client, **body)
    output = events[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["function_call", "web_search_call"]
    assert len(generations(orchestrator)) == 1


async def test_a_search_is_continued_without_its_results(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """The answer is kept, and the search item is skipped."""
    orchestrator.script = Script(deltas=TEXTS)
    body: Any = {"input": "What?", "tools": [WEB], "tool_choice": WEB}
    first = (await client.post("/v1/responses", json=body)).json()
    body = {"input": "Why?", "previous_response_id": first["id"]}
    assert (await client.post("/v1/responses", json=body)).status_code == 200
    messages = generations(orchestrator)[-1].chat.messages
    assert [(m.role, m.content) for m in messages] == [
        ("user", "What?"), ("assistant", ANSWER), ("user", "Why?"),
    ]  # fmt: skip
