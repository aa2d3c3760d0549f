"""Conversations as validated JSON data, the input of chat templates."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import Protocol, TypeAlias

from mesh.protocol.chat import ChatMessage, ChatPrompt
from tokenizer.chat.errors import RenderError

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"
Message: TypeAlias = dict[str, Json]

RESERVED_VARIABLES = frozenset(
    {"messages", "tools", "add_generation_prompt", "continue_final_message", "chat_template"}
)
"""Template variables that `template_kwargs_json` must not set."""

MAX_DEPTH = 100
"""Maximum nesting of JSON, because rendering is recursive."""

_ROLE = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class ArgumentsForm(StrEnum):
    """How a chat template takes the arguments of tool calls."""

    OBJECT = "object"
    """Only as a JSON object."""
    OBJECT_OR_TEXT = "object or text"
    """As a JSON object; as a text where they are none."""
    TEXT = "text"
    """As the text that the model wrote."""


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
    omit_generation_prompt: bool = False
    merge_system_messages: bool = False
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


def conversation_of(prompt: ChatPrompt, arguments: ArgumentsForm) -> Conversation:
    """Validates a request. Raises RenderError, which names the field."""
    if not prompt.messages:
        raise RenderError("messages", "messages must contain at least 1 message, given 0")
    return Conversation(
        messages=[
            _message(index, message, arguments) for index, message in enumerate(prompt.messages)
        ],
        tools=_tools(prompt.tools_json),
        continue_final_message=prompt.continue_final_message,
        omit_generation_prompt=prompt.omit_generation_prompt,
        merge_system_messages=prompt.merge_system_messages,
        template_kwargs=_template_kwargs(prompt.template_kwargs_json),
    )


def _message(index: int, given: ChatMessage, arguments: ArgumentsForm) -> Message:
    """The message with its non-empty fields."""
    if not _ROLE.fullmatch(given.role):
        field = f"messages[{index}].role"
        raise RenderError(
            field,
            f"{field} must be 1 to 64 letters, digits, '_', '.' or '-', given {given.role[:80]!r}",
        )
    message: Message = {"role": given.role, "content": given.content}
    if given.name:
        message["name"] = given.name
    if given.reasoning_content:
        message["reasoning_content"] = given.reasoning_content
    if given.tool_calls_json:
        field = f"messages[{index}].tool_calls_json"
        calls = _tool_calls(field, given.tool_calls_json, arguments)
        if calls:
            message["tool_calls"] = calls
    if given.tool_call_id:
        message["tool_call_id"] = given.tool_call_id
    return message


def _tool_calls(field: str, tool_calls_json: str, form: ArgumentsForm) -> list[Json]:
    """The tool calls, each with a name and arguments in the form that the template takes."""
    calls = _parse(tool_calls_json, field)
    if not isinstance(calls, list):
        raise RenderError(field, f"{field} must be an array of objects, given {_kind(calls)}")
    for number, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        where = f"{field}[{number}].function"
        if not isinstance(function, dict):
            raise RenderError(where, f"{where} must be an object, given {_kind(function)}")
        name = function.get("name")
        if not isinstance(name, str) or not name:
            given = "an empty string" if name == "" else _kind(name)
            raise RenderError(f"{where}.name", f"{where}.name must be a name, given {given}")
        function["arguments"] = arguments_as(form, function.get("arguments"))
    return calls


def arguments_as(form: ArgumentsForm, given: Json) -> Json:
    """Converts the arguments of a call in the history to `form`.

    A model may have written anything: a text that was cut off, a list, or a bad escape. It must
    see what it wrote, so nothing is refused. Arguments that are no object become the only value
    of an object, `{"arguments": …}`, for templates that take objects only.
    """
    if form is ArgumentsForm.TEXT:
        text = given if isinstance(given, str) else _dump(given)
        return text if text.strip() not in ("", "null") else "{}"
    value = _parsed_arguments(given) if isinstance(given, str) else given
    if value is None:
        return {}
    if isinstance(value, dict) and not is_too_deep(value):
        return value
    text = given if isinstance(given, str) else _dump(given)
    if form is ArgumentsForm.OBJECT_OR_TEXT:
        return text
    return {"arguments": text if is_too_deep(value) else value}


def _parsed_arguments(text: str) -> Json:
    """The JSON value of `text`, or `text` itself if it is not JSON; None if it is empty."""
    try:
        # Not strict: models write line feeds inside strings.
        value: Json = json.loads(text, strict=False) if text.strip() else None
    except (ValueError, RecursionError):
        return text
    return value


def _dump(value: Json) -> str:
    return json.dumps(value, ensure_ascii=False)


def _tools(tools_json: str) -> list[Json] | None:
    if not tools_json:
        return None
    tools = _parse(tools_json, "tools_json")
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        name = "tools_json"
        raise RenderError(name, f"{name} must be an array of objects, given {_kind(tools)}")
    return tools or None


def _template_kwargs(template_kwargs_json: str) -> dict[str, Json]:
    if not template_kwargs_json:
        return {}
    name = "template_kwargs_json"
    variables = _parse(template_kwargs_json, name)
    if not isinstance(variables, dict):
        raise RenderError(name, f"{name} must be an object, given {_kind(variables)}")
    reserved = sorted(RESERVED_VARIABLES & variables.keys())
    if reserved:
        raise RenderError(name, f"{name} must not set {', '.join(reserved)}")
    return variables


def _parse(text: str, name: str) -> Json:
    try:
        value: Json = json.loads(text)
    except RecursionError:
        raise _too_deep(name) from None
    except ValueError as error:
        raise RenderError(name, f"{name} must be JSON: {error}") from error
    if is_too_deep(value):
        raise _too_deep(name)
    return value


def is_too_deep(value: Json) -> bool:
    """Whether `value` is nested more than `MAX_DEPTH` deep."""
    level: list[Json] = [value]
    for _ in range(MAX_DEPTH):
        level = [child for parent in level for child in _children(parent)]
    return bool(level)


def _too_deep(name: str) -> RenderError:
    return RenderError(name, f"{name} must be nested at most {MAX_DEPTH} deep, given more")


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
