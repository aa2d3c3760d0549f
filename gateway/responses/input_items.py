"""The items that a response was generated from, as `GET /v1/responses/{id}/input_items` lists them.

They are stored as messages for the model: their texts are joined, and what clients can have
included is always there.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from gateway.responses.items import RESULTS, SOURCES, Json, text_part
from gateway.schemas.responses.queries import InputItemsQuery
from gateway.schemas.responses.request import LOGPROBS
from mesh.errors import invalid


def input_page(items: Sequence[Json], query: InputItemsQuery) -> Json:
    """One page of the items, oldest first in `items`. Raises MeshError."""
    ordered = list(items) if query.order == "asc" else list(reversed(items))
    begin = 0 if query.after is None else _place_after(ordered, query.after)
    page = [listed(item, query.include) for item in ordered[begin : begin + query.limit]]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": begin + len(page) < len(ordered),
    }


def with_included(output: Sequence[Json], full: Sequence[Json], include: Collection[str]) -> None:
    """Add to the items of a response what `include` names; `full` are the stored ones."""
    for item, stored in zip(output, full, strict=True):
        if item["type"] == "web_search_call" and SOURCES in include:
            item["action"] = stored["action"]
        elif item["type"] == "file_search_call" and RESULTS in include:
            item["results"] = stored["results"]


def listed(item: Json, include: Collection[str]) -> Json:
    """A stored item in OpenAI's form, with the fields that `include` names."""
    match item["type"]:
        case "message":
            return _message(item, LOGPROBS in include)
        case "reasoning":
            return _reasoning(item)
        case "web_search_call" if SOURCES not in include:
            action = item["action"]
            assert isinstance(action, dict), "as `search_item` makes it"
            shown = {name: value for name, value in action.items() if name != "sources"}
            return {**item, "action": shown}
        case "file_search_call" if RESULTS not in include:
            return {**item, "results": None}
    return {"status": "completed", **item}


def _message(item: Json, with_logprobs: bool) -> Json:
    content = item["content"]
    if isinstance(content, list):  # generated here
        if not with_logprobs:
            content = [{**part, "logprobs": []} for part in content]
        return {**item, "content": content}
    if item["role"] == "assistant":
        parts = [text_part(str(content))]
    else:
        parts = [{"type": "input_text", "text": content}]
    return {"status": "completed", **item, "content": parts}


def _reasoning(item: Json) -> Json:
    """The texts as parts; those of a client were joined."""
    made = dict(item)
    for field, kind in (("summary", "summary_text"), ("content", "reasoning_text")):
        text = item.get(field)
        if isinstance(text, str):
            made[field] = [{"type": kind, "text": text}] if text else []
    return {"status": "completed", **made}


def _place_after(items: Sequence[Json], id: str) -> int:
    for number in range(len(items), 0, -1):
        if items[number - 1]["id"] == id:
            return number
    raise invalid("after", f"after must be the id of an item of this response, given {id[:80]!r}")
