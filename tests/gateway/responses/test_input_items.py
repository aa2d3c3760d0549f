"""The items that a response was generated from, in pages; fields that are included on demand."""

from __future__ import annotations

from typing import Any, get_args

import httpx
import pytest
from openai.types.responses.response_item import ResponseItem
from pydantic import TypeAdapter

from tests.gateway.fakes import FakeOrchestrator, Script
from tests.gateway.responses.test_kept import UNKNOWN, created

ITEM: TypeAdapter[Any] = TypeAdapter(get_args(ResponseItem)[0])

INPUT = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": [{"type": "input_text", "text": "a"}], "id": "msg_mine"},
    {"role": "assistant", "content": "b"},
    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "why"}], "content": []},
    {"type": "function_call", "call_id": "c", "name": "find", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c", "output": "d"},
]


async def listed(client: httpx.AsyncClient, id: str, **query: Any) -> dict[str, Any]:
    """A page of the input items, checked against the types of OpenAI's SDK."""
    response = await client.get(f"/v1/responses/{id}/input_items", params=query)
    assert response.status_code == 200, response.text
    page: dict[str, Any] = response.json()
    for item in page["data"]:
        ITEM.validate_python(item)
    return page


async def test_items_have_openais_form(client: httpx.AsyncClient) -> None:
    """Each has an id, the client's own if it gave one; the newest is first."""
    response = await created(client, input=INPUT)
    page = await listed(client, response["id"])
    items = page["data"][::-1]
    assert [item["type"] for item in items] == [
        *["message"] * 3,
        *["reasoning", "function_call", "function_call_output"],
    ]
    assert items[1]["id"] == "msg_mine"
    assert items[1]["content"] == [{"type": "input_text", "text": "a"}]
    assert items[2]["content"][0]["type"] == "output_text"
    assert items[3]["summary"] == [{"type": "summary_text", "text": "why"}]
    assert (page["object"], page["has_more"]) == ("list", False)
    assert (page["first_id"], page["last_id"]) == (items[-1]["id"], items[0]["id"])
    assert len({item["id"] for item in items}) == len(items)
    assert await listed(client, response["id"]) == page


async def test_a_continued_response_has_the_items_before(client: httpx.AsyncClient) -> None:
    """Those that it was generated from: the earlier input and output, with their ids."""
    first = await created(client, input="One")
    second = await created(client, input="Two", previous_response_id=first["id"])
    items = (await listed(client, second["id"], order="asc"))["data"]
    assert [item["role"] for item in items] == ["user", "assistant", "user"]
    assert items[1]["id"] == first["output"][0]["id"]
    assert items[0] == (await listed(client, first["id"]))["data"][0]


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_pages_make_the_whole(client: httpx.AsyncClient, order: str) -> None:
    """Each begins after the last item of the one before."""
    id = (await created(client, input=INPUT))["id"]
    whole = (await listed(client, id, order=order))["data"]
    found: list[dict[str, Any]] = []
    query: dict[str, Any] = {"limit": 4, "order": order}
    while True:
        page = await listed(client, id, **query)
        found += page["data"]
        query["after"] = page["last_id"]
        if not page["has_more"]:
            break
    assert found == whole
    assert (await listed(client, id, **query))["data"] == []


@pytest.mark.parametrize(
    ("query", "field"),
    [("limit=0", "limit"), ("limit=101", "limit"), ("order=up", "order"), ("after=x", "after")],
)
async def test_a_bad_query_is_refused(client: httpx.AsyncClient, query: str, field: str) -> None:
    """The field is named."""
    id = (await created(client))["id"]
    response = await client.get(f"/v1/responses/{id}/input_items?{query}")
    assert (response.status_code, response.json()["error"]["param"]) == (400, field)


async def test_an_unknown_id_is_404(client: httpx.AsyncClient) -> None:
    response = await client.get(f"/v1/responses/{UNKNOWN}/input_items")
    assert response.status_code == 404


@pytest.mark.parametrize(
    ("tool", "field", "place"),
    [
        ("web_search", "web_search_call.action.sources", "sources"),
        ("file_search", "file_search_call.results", "results"),
    ],
)
async def test_searches_include_their_results_later(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator, tool: str, field: str, place: str
) -> None:
    """Also if the request that made the response did not ask for them."""
    orchestrator.script = Script()

    def results(item: dict[str, Any]) -> object:
        fields: dict[str, Any] = item.get("action", item)
        return fields.get(place)

    response = await created(client, tools=[{"type": tool}], tool_choice={"type": tool})
    assert not results(response["output"][0])
    path = f"/v1/responses/{response['id']}"
    again = (await client.get(path, params={"include[]": field})).json()
    assert results(again["output"][0])
    assert (await client.get(path)).json() == response
    following = await created(client, previous_response_id=response["id"])
    items = (await listed(client, following["id"], order="asc"))["data"]
    assert not results(items[1])
    items = (await listed(client, following["id"], order="asc", include=field))["data"]
    assert results(items[1])
