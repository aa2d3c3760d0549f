"""The output items of a response, made of blocks and searches."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from gateway.openai.responses import chat_logprobs
from gateway.schemas.responses.tools import FILE_SEARCH
from gateway.upstream.blocks import Block, BlockKind
from mesh.protocol.search import Source
from mesh.protocol.summary import Citation

Json: TypeAlias = dict[str, object]

_PREFIX = {BlockKind.TEXT: "msg", BlockKind.REASONING: "rs", BlockKind.TOOL_CALL: "fc"}

_CITATION = re.compile(r"\s*\[([0-9][0-9, \t]*)\]")

MAX_QUERY_CHARACTERS = 500

SOURCES = "web_search_call.action.sources"
RESULTS = "file_search_call.results"
SEARCH_FIELDS = (SOURCES, RESULTS)
"""Values of `include` that add to the items of searches."""


@dataclass(slots=True, eq=False)
class SearchCall:
    """A search that the model or the request asked for."""

    name: str
    """`web_search` or `file_search`."""
    call_id: str = ""
    arguments: str = ""
    query: str = ""
    results: Sequence[Source] = ()
    status: str = "in_progress"


def item_id(block: Block, response_id: str, index: int) -> str:
    """The id of the item number `index`; ids of responses are random, so this is unique."""
    return f"{_PREFIX[block.kind]}_{response_id.removeprefix('resp_')}{index}"


def search_id(call: SearchCall, response_id: str, index: int) -> str:
    """The same for a search."""
    prefix = "fs" if call.name == FILE_SEARCH else "ws"
    return f"{prefix}_{response_id.removeprefix('resp_')}{index}"


def text_part(text: str, annotations: Sequence[Json] = (), logprobs: object = None) -> Json:
    """The content of a message."""
    return {
        "type": "output_text",
        "text": text,
        "annotations": list(annotations),
        "logprobs": logprobs or [],
    }


def part_of(block: Block, annotations: Sequence[Json] = ()) -> Json:
    """The content of a message or of reasoning."""
    if block.kind is BlockKind.REASONING:
        return {"type": "reasoning_text", "text": block.text}
    return text_part(block.text, annotations, text_logprobs(block))


def empty_part(block: Block) -> Json:
    """The content of a block that begins: its first text may be known already."""
    if block.kind is BlockKind.REASONING:
        return {"type": "reasoning_text", "text": ""}
    return text_part("")


def text_logprobs(block: Block) -> object:
    """The log probabilities of a text, as in a chat completion."""
    logprobs = chat_logprobs(block.logprobs)
    return [] if logprobs is None else logprobs["content"]


def opened_item(block: Block, id: str) -> Json:
    """The item of a block that begins."""
    if block.kind is BlockKind.TOOL_CALL:
        return _call_item(block, id, "in_progress", "")
    fields: Json = {"id": id, "status": "in_progress", "content": []}
    if block.kind is BlockKind.REASONING:
        return {**fields, "type": "reasoning", "summary": []}
    return {**fields, "type": "message", "role": "assistant"}


def closed_item(block: Block, id: str, status: str, part: Json) -> Json:
    """The item of a block that has ended; `part` is its content unless it is a call."""
    if block.kind is BlockKind.TOOL_CALL:
        return _call_item(block, id, status, block.text)
    return {**opened_item(block, id), "status": status, "content": [part]}


def _call_item(block: Block, id: str, status: str, arguments: str) -> Json:
    return {
        "id": id,
        "type": "function_call",
        "status": status,
        "call_id": block.id,
        "name": block.name,
        "arguments": arguments,
    }


def search_item(call: SearchCall, id: str, include: Sequence[str]) -> Json:
    """The item of a search."""
    if call.name == FILE_SEARCH:
        results = None
        if RESULTS in include:
            results = [_file_result(result) for result in call.results]
        return {
            "id": id,
            "type": "file_search_call",
            "status": call.status,
            "queries": [call.query] if call.query else [],
            "results": results,
        }
    action: Json = {"type": "search", "query": call.query}
    if SOURCES in include:
        action["sources"] = [{"type": "url", "url": result.url} for result in call.results]
    return {"id": id, "type": "web_search_call", "status": call.status, "action": action}


def _file_result(result: Source) -> Json:
    return {
        "file_id": result.url,
        "filename": result.title,
        "score": result.score,
        "text": result.snippet,
        "attributes": {},
    }


def query_of(arguments: str, otherwise: str) -> str:
    """The query in the arguments of a call; a model may have written anything."""
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        value = None
    query = value.get("query") if isinstance(value, dict) else None
    text = query if isinstance(query, str) and query.strip() else otherwise
    return searchable(text)


def searchable(text: str) -> str:
    """`text` as the orchestrator takes it: trimmed, printable, not too long."""
    kept = "".join(character if character.isprintable() else " " for character in text)
    return kept.strip()[:MAX_QUERY_CHARACTERS].strip()


def citations_of(
    text: str, begin: int, citations: Sequence[Citation], sources: Sequence[Source]
) -> list[Json]:
    """The annotations of a text that begins at `begin` of the answer.

    One for each citation whose source supports its sentence; its range is that of the `[n]` in the
    text. A source without a URL has none.
    """
    by_number = {source.position: source for source in sources}
    annotations: list[Json] = []
    for citation in citations:
        source = None if citation.number is None else by_number.get(citation.number)
        if source is None or citation.span is None or not source.url:
            continue
        marker = _marker(text, citation.sentence[1] - begin, source.position)
        if marker is None:
            continue
        annotations.append(
            {
                "type": "url_citation",
                "start_index": marker[0],
                "end_index": marker[1],
                "url": source.url,
                "title": source.title,
            }
        )
    return annotations


def _marker(text: str, end: int, number: int) -> tuple[int, int] | None:
    """The range of the `[n]` with this number after the sentence that ends at `end`."""
    if end < 0:
        return None
    while (found := _CITATION.match(text, end)) is not None:
        if str(number) in re.findall("[0-9]+", found[1]):
            return text.index("[", found.start()), found.end()
        end = found.end()
    return None
