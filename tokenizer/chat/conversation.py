"""Conversations as validated JSON data, the input of chat templates."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypeAlias

from mesh.errors import MeshError, invalid

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"
Message: TypeAlias = dict[str, Json]

RESERVED_VARIABLES = frozenset(
    {"messages", "tools", "add_generation_prompt", "continue_final_message", "chat_template"}
)
"""Template variables that `template_kwargs_json` must not set."""

MAX_DEPTH = 100
"""Maximum nesting of JSON, because rendering is recursive."""

_ROLE = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class StringTransform(Protocol):
    """A function that transforms one string of a conversation."""

    def __call__(self, text: str, role: str | None) -> str:
        """`role` is the role of the string's message; None outside of messages."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """The input of a chat template."""

    messages: list[Message]
    tools: list[Json] | None = None
    continue_final_message: bool = False
    template_kwargs: dict[str, Json]

    def map_strings(self, transform: StringTransform) -> Conversation:
        """Returns a copy with every string transformed.

        The keys of messages and of template variables stay unchanged, because templates refer to
        them; keys of nested objects are transformed.
        """
        messages = [
            _map_values(message, partial(transform, role=str(message["role"])))
            for message in self.messages
        ]
        outside = partial(transform, role=None)
        tools = None if self.tools is None else [_map(tool, outside) for tool in self.tools]
        variables = _map_values(self.template_kwargs, outside)
        return replace(self, messages=messages, tools=tools, template_kwargs=variables)


def build_message(
    index: int, *, role: str, content: str, name: str, tool_calls_json: str, tool_call_id: str
) -> Message:
    """Builds a message from its non-empty fields. Raises MeshError, which names `index`."""
    if not _ROLE.fullmatch(role):
        raise invalid(
            f"messages[{index}].role",
            f"messages[{index}].role must be 1 to 64 letters, digits, '_', '.' or '-', "
            f"given {role[:80]!r}",
        )
    message: Message = {"role": role, "content": content}
    if name:
        message["name"] = name
    if tool_calls_json:
        message["tool_calls"] = _tool_calls(index, tool_calls_json)
    if tool_call_id:
        message["tool_call_id"] = tool_call_id
    return message


def parse_tools(tools_json: str) -> list[Json] | None:
    """Parses the tools; None if there are none. Raises MeshError."""
    if not tools_json:
        return None
    tools = _parse(tools_json, "tools_json")
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise invalid("tools_json", f"tools_json must be an array of objects, given {_kind(tools)}")
    return tools or None


def parse_template_kwargs(template_kwargs_json: str) -> dict[str, Json]:
    """Parses additional template variables. Raises MeshError."""
    if not template_kwargs_json:
        return {}
    name = "template_kwargs_json"
    variables = _parse(template_kwargs_json, name)
    if not isinstance(variables, dict):
        raise invalid(name, f"{name} must be an object, given {_kind(variables)}")
    reserved = sorted(RESERVED_VARIABLES & variables.keys())
    if reserved:
        raise invalid(name, f"{name} must not set {', '.join(reserved)}")
    return variables


def _tool_calls(index: int, tool_calls_json: str) -> list[Json]:
    """Parses tool calls; arguments, which OpenAI sends as strings, become JSON objects."""
    name = f"messages[{index}].tool_calls_json"
    calls = _parse(tool_calls_json, name)
    if not isinstance(calls, list):
        raise invalid(name, f"{name} must be an array of objects, given {_kind(calls)}")
    for number, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            raise invalid(name, f"{name}[{number}].function must be an object")
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            where = f"messages[{index}].tool_calls[{number}].function.arguments"
            parsed = _parse(arguments, where) if arguments.strip() else {}
            if not isinstance(parsed, dict):
                raise invalid(where, f"{where} must be a JSON object, given {_kind(parsed)}")
            function["arguments"] = parsed
    return calls


def _parse(text: str, name: str) -> Json:
    try:
        value: Json = json.loads(text)
    except RecursionError:
        raise _too_deep(name) from None
    except ValueError as error:
        raise invalid(name, f"{name} must be JSON: {error}") from error
    level: list[Json] = [value]
    for _ in range(MAX_DEPTH):
        level = [child for parent in level for child in _children(parent)]
    if level:
        raise _too_deep(name)
    return value


def _too_deep(name: str) -> MeshError:
    return invalid(name, f"{name} must be nested at most {MAX_DEPTH} deep, given more")


def _children(value: Json) -> list[Json]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _map_values(values: dict[str, Json], transform: Callable[[str], str]) -> dict[str, Json]:
    return {key: _map(value, transform) for key, value in values.items()}


def _map(value: Json, transform: Callable[[str], str]) -> Json:
    if isinstance(value, str):
        return transform(value)
    if isinstance(value, list):
        return [_map(item, transform) for item in value]
    if isinstance(value, dict):
        return {transform(key): _map(item, transform) for key, item in value.items()}
    return value


def _kind(value: Json) -> str:
    names = {list: "an array", dict: "an object", str: "a string", bool: "a boolean"}
    return names.get(type(value), "null" if value is None else "a number")
