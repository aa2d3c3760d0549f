"""The generations of a response: its messages, tools and options for the orchestrator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gateway.responses.conversation import Placed
from gateway.schemas.common import to_json
from gateway.schemas.responses.request import ResponsesRequest
from gateway.schemas.responses.tools import FunctionTool, SearchTool
from gateway.upstream.field_names import FieldNames
from gateway.upstream.generation import Generation
from mesh.errors import invalid
from mesh.protocol.chat import MAX_MESSAGES, ChatPrompt, ToolChoice
from mesh.protocol.search import Source

NAMES = FieldNames(
    ResponsesRequest.model_fields,
    {
        "prompt": "input",
        "messages": "input",
        "template_kwargs": "reasoning",
        "num_logprobs": "top_logprobs",
        "max_tokens": "max_output_tokens",
        "constraint": "text.format",
        "constraint.json_object": "text.format",
        "constraint.json_schema": "text.format.schema",
        "response_format": "text.format",
    },
)

_QUERY = {
    "type": "object",
    "properties": {"query": {"type": "string", "description": "What to search for."}},
    "required": ["query"],
    "additionalProperties": False,
}
_DESCRIPTIONS = {
    "web_search": "Searches for documents about a question.",
    "file_search": "Searches the files for passages about a question.",
}


class Progress(NamedTuple):
    """What changes from one generation of a response to the next."""

    messages: Sequence[Placed]
    sources: Sequence[Source] | None = None
    """What the searches found; None: there was none yet."""
    may_search: bool = True
    """Whether the model may call the search tools."""


def generation(body: ResponsesRequest, progress: Progress) -> Generation:
    """The next generation of a response. Raises MeshError."""
    messages = progress.messages
    if len(messages) > MAX_MESSAGES:
        given = f"must have at most {MAX_MESSAGES} items in all, given {len(messages)}"
        raise invalid("input", f"input {given}")
    tools, places = _tools(body, may_search=progress.may_search)
    effort = body.reasoning.effort
    kwargs = "" if effort is None else to_json(_template_kwargs(effort), "reasoning")
    prompt = ChatPrompt(
        messages=tuple(each.message for each in messages),
        tools_json=to_json(tools, "tools") if tools else "",
        template_kwargs_json=kwargs,
    )
    renamed = {f"messages[{number}]": each.place for number, each in enumerate(messages)}
    renamed |= {f"tools[{number}].function": place for number, place in enumerate(places)}
    return Generation(
        model=body.model,
        prompt=prompt,
        sampling=body.sampling(
            0,
            max_tokens=body.max_output_tokens,
            num_logprobs=body.num_logprobs if progress.sources is None else None,
            constraint=body.text.constraint(),
        ),
        stop=tuple(body.stop),
        tool_choice=_choice(body, progress) if tools else None,
        names=NAMES.and_also(renamed),
        sources=progress.sources,
    )


def _template_kwargs(effort: str) -> dict[str, object]:
    if effort == "none":
        return {"reasoning_effort": effort, "enable_thinking": False}
    return {"reasoning_effort": effort}


def _tools(body: ResponsesRequest, *, may_search: bool) -> tuple[list[object], list[str]]:
    """The tools in the form of a chat, and their paths in the request's body."""
    tools: list[object] = []
    places: list[str] = []
    if body.tool_choice.mode == "none":
        return tools, places
    allowed = body.tool_choice.allowed
    for number, tool in enumerate(body.tools):
        if isinstance(tool, FunctionTool):
            name, made = tool.name, tool.in_chat_form()
        elif isinstance(tool, SearchTool) and may_search:
            name = tool.function_name
            function = {"name": name, "description": _DESCRIPTIONS[name], "parameters": _QUERY}
            made = {"type": "function", "function": function}
        else:
            continue
        if allowed is None or name in allowed:
            tools.append(made)
            places.append(f"tools[{number}]")
    return tools, places


def _choice(body: ResponsesRequest, progress: Progress) -> ToolChoice:
    choice = body.tool_choice
    # After a search the model answers, or makes another call.
    forced = choice.mode == "required" and progress.sources is None
    return ToolChoice(
        required=forced and not choice.name,
        name=choice.name if forced else "",
        single=not body.parallel_tool_calls,
    )
