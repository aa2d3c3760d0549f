"""Grammars that force a model to call tools, in its own tool-call format.

The grammars are EBNF in Lark's notation, with `<[id]>` for a token by its id, because a vocabulary
may have the markers as single tokens. The engine adds the rules for JSON schemas.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from mesh.errors import invalid
from mesh.protocol.chat import ToolChoice
from mesh.protocol.constraints import ConstraintForm, OutputConstraint, SchemaRule
from orchestrator.text.tools.formats import LLAMA3
from orchestrator.text.tools.tool_format import (
    CALL_ID,
    HARMONY_CHANNEL,
    HARMONY_ENDS,
    HARMONY_MESSAGE,
    HARMONY_START,
    CallStyle,
    ReasoningFormat,
    ToolFormat,
)

MAX_CALLS = 16
"""Maximum calls in one answer when calls are forced; a small model may never stop."""

TokenId: TypeAlias = Callable[[str], int | None]
"""Returns the id of a token by its text; None if there is no such token."""

_ANSWER = "answer_value"

# No white space except what the format itself has.
_COMPACT = {"whitespace_pattern": ""}


_MARKERS = re.compile(r"(<\|[a-z]+\|>|<｜[^｜]+｜>|\[[A-Z_]+\])")
"""Texts that may be single tokens."""


class Tool(NamedTuple):
    """A tool that the model may call."""

    name: str
    parameters: Mapping[str, Any]
    """A JSON schema of an object."""
    number: int = 0
    """Its place in the request."""

    @property
    def field(self) -> str:
        """What an error message calls the schema."""
        return f"tools[{self.number}].function.parameters of {self.name!r}"


class _Rules(NamedTuple):
    """A part of a grammar, and the rules in it whose text is JSON."""

    text: str
    schema_rules: tuple[SchemaRule, ...] = ()

    def constraint(self, text: str) -> OutputConstraint:
        """The grammar `text`, which contains this part."""
        return OutputConstraint(ConstraintForm.GRAMMAR, text, self.schema_rules)


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
            field = f"tools[{number}].function.name"
            raise invalid(field, f"{field} must be a string")
        parameters = function.get("parameters") or {"type": "object"}
        if not isinstance(parameters, dict):
            field = f"tools[{number}].function.parameters"
            raise invalid(field, f"{field} must be an object")
        tools.append(Tool(name, parameters, number))
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
            "tool_choice.name",
            f"tool_choice.name must be one of the tools ({names}), given {choice.name!r}",
        )
    single = choice.single or bool(choice.name)
    # A model without a known format writes plain JSON, as Llama 3 does.
    grammar = _grammar(chosen, (format or LLAMA3).enforced, token_id, single=single)
    return grammar.constraint(grammar.text)


def calls_or_answer(
    tools: Sequence[Tool],
    format: ToolFormat,
    token_id: TokenId,
    answer: OutputConstraint,
    *,
    single: bool,
) -> OutputConstraint:
    """Allows either tool calls or an answer that keeps to `answer`, as OpenAI does.

    A call's arguments may be any JSON object, as without an answer format: a schema that cannot be
    enforced must not refuse a request that does not force a call.

    Regular expressions are returned unchanged, so no call is possible: a grammar cannot express
    them exactly.
    """
    rules = _answer_rules(answer)
    if rules is None:
        return answer
    free = [tool._replace(parameters={"type": "object"}) for tool in tools]
    calls = _grammar(free, format.enforced, token_id, single=single, forced=False)
    text = calls.text.removeprefix("start: ")
    final = f"{_final(token_id)} " if format.style is CallStyle.HARMONY else ""
    text = f"start: tool_calls | answer\ntool_calls: {text}answer: {final}{rules.text}\n"
    return OutputConstraint(
        ConstraintForm.GRAMMAR, text, (*calls.schema_rules, *rules.schema_rules)
    )


def with_thinking(
    constraint: OutputConstraint, format: ReasoningFormat, token_id: TokenId, *, begun: bool
) -> OutputConstraint:
    """Applies the constraint after the model's reasoning, which stays unconstrained.

    Regular expressions are returned unchanged: a grammar cannot express them exactly.
    """
    rules = _answer_rules(constraint)
    if rules is None:
        return constraint
    opened = "" if begun else f"{_marker(format.start, token_id)} "
    start = "thinking after_thinking" if begun else "thinking? after_thinking"
    end = token_id(format.end)
    if end is not None:
        thinking = f"thinking: {opened}thought <[{end}]> /\\s*/\nthought: /(?s:.*)/"
    else:
        tag = json.dumps(format.end)
        thinking = f"thinking: {opened}thought /\\s*/\nthought[suffix={tag}]: /(?s:.*)/"
    return rules.constraint(f"start: {start}\n{thinking}\nafter_thinking: {rules.text}\n")


def in_channels(
    constraint: OutputConstraint, token_id: TokenId, *, final: bool
) -> OutputConstraint:
    """Applies the constraint to a harmony answer after its analysis, which stays unconstrained.

    `final`: it describes the text of the final message; otherwise it includes the headers.
    """
    rules = _answer_rules(constraint)
    if rules is None:
        return constraint
    end = HARMONY_ENDS[0]
    number = token_id(end)
    opened = _spelled(f"{HARMONY_CHANNEL}analysis{HARMONY_MESSAGE}", token_id)
    following = _spelled(f"{HARMONY_START}assistant", token_id)
    if number is not None:
        thinking = f"thinking: {opened} thought <[{number}]> {following}\nthought: /(?s:.*)/"
    else:
        tag = json.dumps(end)
        thinking = f"thinking: {opened} thought {following}\nthought[suffix={tag}]: /(?s:.*)/"
    header = f"{_final(token_id)} " if final else ""
    return rules.constraint(
        f"start: thinking? after_thinking\n{thinking}\nafter_thinking: {header}{rules.text}\n"
    )


def _final(token_id: TokenId) -> str:
    """The header of a harmony answer's text."""
    return _spelled(f"{HARMONY_CHANNEL}final{HARMONY_MESSAGE}", token_id)


def _answer_rules(constraint: OutputConstraint) -> _Rules | None:
    """What may follow a rule's name in a grammar; None if a grammar cannot express it."""
    if constraint.form in (ConstraintForm.JSON_OBJECT, ConstraintForm.JSON_SCHEMA):
        schema = constraint.text or '{"type": "object"}'
        return _Rules(_ANSWER, (SchemaRule(_ANSWER, schema, constraint.field),))
    before, found, rules = f"\n{constraint.text}".partition("\nstart: ")
    if constraint.form is not ConstraintForm.GRAMMAR or not found:
        return None
    return _Rules(f"{rules}\n{before}", constraint.schema_rules)


def _grammar(
    tools: Sequence[Tool],
    format: ToolFormat,
    token_id: TokenId,
    *,
    single: bool,
    forced: bool = True,
) -> _Rules:
    """The rules of calls. `forced`: nothing else is possible."""
    separator = _text(format.separator) if format.separator else ""
    repeated = "" if single else f" ({separator} tool_call){{0,{MAX_CALLS - 1}}}"
    start = f"tool_call{repeated}"
    if format.brackets and not format.name_first:
        start = f'{_marker(format.start, token_id)} "[" {start} "]"'
    elif format.again:
        start = f"{_marker(format.start, token_id)} {start} {_marker(format.close, token_id)}"
    names = " | ".join(f"tool_call_{tool.number}" for tool in tools)
    lines = [f"start: {start}", f"tool_call: {names}"]
    schema_rules = []
    for tool in tools:
        rule, arguments = f"tool_call_{tool.number}", f"tool_arguments_{tool.number}"
        if format.bare and not forced:
            # Other JSON may begin like the call. The grammar has no lookahead, so both must
            # consist of the same lexemes.
            schema_rules.append(SchemaRule(rule, _json_call(tool, format), tool.field))
            continue
        lines.append(f"{rule}: {_call(tool.name, arguments, format, token_id)}")
        schema = {**tool.parameters, "x-guidance": _COMPACT} if forced else tool.parameters
        text = json.dumps(schema, ensure_ascii=False)
        schema_rules.append(SchemaRule(arguments, text, tool.field))
    return _Rules("\n".join(lines) + "\n", tuple(schema_rules))


def _call(name: str, arguments: str, format: ToolFormat, token_id: TokenId) -> str:
    start = _marker(format.again or format.start, token_id)
    if format.name_first:
        call_id = f"{_marker(CALL_ID, token_id)} /[a-zA-Z0-9]{{9}}/" if format.call_id else ""
        before, after = (_spelled(each, token_id) for each in format.around_arguments)
        end = _spelled(format.end, token_id)
        spelled = _spelled(f"{format.before_name}{name}", token_id)
        parts = (start, spelled, call_id, before, arguments, after, end)
        return " ".join(part for part in parts if part)
    head = json.dumps({"name": name}, ensure_ascii=False)[:-1]
    head = _text(f'{head}, "{format.arguments}": ')
    call = f'{head} {arguments} "}}"'
    if format.end:
        return f'{start} "\\n" {call} "\\n" {_marker(format.end, token_id)}'
    return call


def _json_call(tool: Tool, format: ToolFormat) -> str:
    call = {
        "type": "object",
        "properties": {"name": {"const": tool.name}, format.arguments: tool.parameters},
        "required": ["name", format.arguments],
        "additionalProperties": False,
    }
    return json.dumps(call, ensure_ascii=False)


def _marker(text: str, token_id: TokenId) -> str:
    number = token_id(text)
    literal = _text(text)
    return literal if number is None else f"(<[{number}]> | {literal})"


def _spelled(text: str, token_id: TokenId) -> str:
    """A text that may contain markers."""
    parts = [part for part in _MARKERS.split(text) if part]
    return " ".join(
        _marker(part, token_id) if _MARKERS.fullmatch(part) else _text(part) for part in parts
    )


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
