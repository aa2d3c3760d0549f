"""Grammars that force a model to call tools, in its own tool-call format.

The grammars are EBNF in Lark's notation. The engine adds `%json` for a JSON schema and `<[id]>`
for a token by its id, because a vocabulary may have the markers as single tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from mesh.errors import invalid
from mesh.protocol.chat import ToolChoice
from mesh.protocol.constraints import ConstraintForm, OutputConstraint
from orchestrator.text.tools.tool_format import LLAMA3, THINK_END, THINK_START, ToolFormat

MAX_CALLS = 16
"""Maximum calls in one answer when calls are forced; a small model may never stop."""

TokenId: TypeAlias = Callable[[str], int | None]
"""Returns the id of a token by its text; None if there is no such token."""

# No white space except what the format itself has.
_COMPACT = {"whitespace_pattern": ""}


class Tool(NamedTuple):
    """A tool that the model may call."""

    name: str
    parameters: Mapping[str, Any]
    """A JSON schema of an object."""


def parse_tools(tools_json: str) -> list[Tool]:
    """Parses tools in OpenAI's format. Raises MeshError (INVALID_REQUEST)."""
    try:
        values = json.loads(tools_json) if tools_json else []
    except (ValueError, RecursionError):
        raise invalid("tools", "tools must be JSON, given something else") from None
    if not isinstance(values, list):
        raise invalid("tools", "tools must be an array, given something else")
    tools = []
    for number, value in enumerate(values):
        function = value.get("function") if isinstance(value, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(function, dict) or not isinstance(name, str) or not name:
            raise invalid("tools", f"tools[{number}].function.name must be a string")
        parameters = function.get("parameters") or {"type": "object"}
        if not isinstance(parameters, dict):
            raise invalid("tools", f"tools[{number}].function.parameters must be an object")
        tools.append(Tool(name, parameters))
    return tools


def tool_constraint(
    tools: Sequence[Tool], choice: ToolChoice, format: ToolFormat | None, token_id: TokenId
) -> OutputConstraint | None:
    """The grammar that enforces `choice`; None if the model decides. Raises MeshError."""
    if not (choice.required or choice.name):
        return None
    if not tools:
        raise invalid("tool_choice", "tool_choice must come with tools, given none")
    chosen = [tool for tool in tools if choice.name in ("", tool.name)]
    if not chosen:
        names = ", ".join(tool.name for tool in tools)
        raise invalid(
            "tool_choice",
            f"tool_choice must name one of the tools ({names}), given {choice.name!r}",
        )
    single = choice.single or bool(choice.name)
    # A model without a known format writes plain JSON, as Llama 3 does.
    return OutputConstraint(
        ConstraintForm.GRAMMAR, _grammar(chosen, format or LLAMA3, token_id, single=single)
    )


def with_thinking(
    constraint: OutputConstraint, token_id: TokenId, *, begun: bool
) -> OutputConstraint:
    """Applies the constraint after the model's reasoning, which stays unconstrained.

    Regular expressions are returned unchanged: a grammar cannot express them exactly.
    """
    if constraint.form is ConstraintForm.JSON_OBJECT:
        rules = '%json {"type": "object"}'
    elif constraint.form is ConstraintForm.JSON_SCHEMA:
        rules = f"%json {constraint.text}"
    elif constraint.form is ConstraintForm.GRAMMAR and "\nstart: " in f"\n{constraint.text}":
        start, *others = f"\n{constraint.text}".split("\nstart: ", 1)[1].split("\n", 1)
        rules = "\n".join([start, *others])
    else:
        return constraint
    opened = "" if begun else f"{_marker(THINK_START, token_id)} "
    start = "thinking answer" if begun else "thinking? answer"
    end = token_id(THINK_END)
    if end is not None:
        thinking = f"thinking: {opened}thought <[{end}]> /\\s*/\nthought: /(?s:.*)/"
    else:
        tag = json.dumps(THINK_END)
        thinking = f"thinking: {opened}thought /\\s*/\nthought[suffix={tag}]: /(?s:.*)/"
    return OutputConstraint(
        ConstraintForm.GRAMMAR, f"start: {start}\n{thinking}\nanswer: {rules}\n"
    )


def _grammar(tools: Sequence[Tool], format: ToolFormat, token_id: TokenId, *, single: bool) -> str:
    separator = _text(format.separator)
    repeated = "" if single else f" ({separator} call){{0,{MAX_CALLS - 1}}}"
    start = f"call{repeated}"
    if format.brackets:
        start = f'{_marker(format.start, token_id)} "[" {start} "]"'
    names = " | ".join(f"call_{number}" for number in range(len(tools)))
    lines = [f"start: {start}", f"call: {names}"]
    for number, tool in enumerate(tools):
        head = json.dumps({"name": tool.name}, ensure_ascii=False)[:-1]
        head = _text(f'{head}, "{format.arguments}": ')
        body = f'{head} arguments_{number} "}}"'
        if format.end:
            start_marker = _marker(format.start, token_id)
            end_marker = _marker(format.end, token_id)
            body = f'{start_marker} "\\n" {body} "\\n" {end_marker}'
        schema = {**tool.parameters, "x-guidance": _COMPACT}
        lines.append(f"call_{number}: {body}")
        lines.append(f"arguments_{number}: %json {json.dumps(schema, ensure_ascii=False)}")
    return "\n".join(lines) + "\n"


def _marker(text: str, token_id: TokenId) -> str:
    number = token_id(text)
    literal = _text(text)
    return literal if number is None else f"(<[{number}]> | {literal})"


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
