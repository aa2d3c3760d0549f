"""What a chat template renders, found by rendering short conversations with known words.

llama.cpp examines templates in the same way (`common/minja/chat-template.hpp`). Reading the source
is not enough: templates test the same things in many ways.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from tokenizer.chat.conversation import ArgumentsForm, Json, Message

Render: TypeAlias = Callable[[Sequence[Message], "list[Json] | None"], "str | None"]
"""Renders messages and tools; None if the template rejects them."""

_TOOL, _KEY, _VALUE, _TEXT = "weir_tool", "weir_key", "weir_value", "weir text"

_USER: Message = {"role": "user", "content": "Hi"}
_TOOLS: list[Json] = [
    {
        "type": "function",
        "function": {
            "name": _TOOL,
            "description": "A tool.",
            "parameters": {"type": "object", "properties": {_KEY: {"type": "string"}}},
        },
    }
]
_ARGUMENTS_OBJECT: Json = {_KEY: _VALUE}
_ARGUMENTS_TEXT = f'{{"{_KEY}": "{_VALUE}"}}'
_CALL_ID = "weir00001"  # nine letters and digits, as Mistral's templates require


class Capabilities(NamedTuple):
    """What one template renders."""

    tools: bool = True
    tool_calls: bool = True
    """Calls in the history."""
    null_content: bool = False
    """Calls are rendered only in a message whose content is null."""
    arguments: ArgumentsForm = ArgumentsForm.OBJECT
    tool_messages: bool = True
    """Messages of role `tool`."""
    system_messages: bool = True
    developer_messages: bool = False
    """The template knows the role `developer`."""
    thinking: bool = False
    """Reasoning in the history is rendered from the field `thinking`, as gpt-oss' template does."""


def find_capabilities(render: Render, *, developer_messages: bool) -> Capabilities:
    """Examines a template. Never raises."""
    call = _best_call(render)
    system: list[Message] = [{"role": "system", "content": _TEXT}, _USER]
    return Capabilities(
        tools=_renders_tools(render),
        tool_calls=call is not None,
        null_content=call is not None and call.content is None,
        arguments=ArgumentsForm.OBJECT_OR_TEXT if call is None else _arguments_form(render, call),
        tool_messages=_renders_tool_messages(render, call),
        system_messages=_TEXT in (render(system, None) or ""),
        developer_messages=developer_messages,
        thinking=_renders(render, call, "thinking")
        and not _renders(render, call, "reasoning_content"),
    )


class _Call(NamedTuple):
    """A form of a message with a tool call."""

    content: str | None
    arguments: Json

    @property
    def message(self) -> Message:
        function: Json = {"name": _TOOL, "arguments": self.arguments}
        calls: list[Json] = [{"id": _CALL_ID, "type": "function", "function": function}]
        return {"role": "assistant", "content": self.content, "tool_calls": calls}


_CALLS = (
    _Call("", _ARGUMENTS_OBJECT),
    _Call("", _ARGUMENTS_TEXT),
    _Call(None, _ARGUMENTS_OBJECT),
    _Call(None, _ARGUMENTS_TEXT),
)
"""The forms, the preferred ones first."""


def _best_call(render: Render) -> _Call | None:
    """The first form whose name and arguments are rendered well, else the first rendered one."""
    rendered = [(call, output) for call in _CALLS if (output := _render_call(render, call))]
    for call, output in rendered:
        if _has_arguments(output):
            return call
    return rendered[0][0] if rendered else None


def _render_call(render: Render, call: _Call) -> str:
    """The conversation with the call; empty if the template rejects it or omits the call.

    Some templates require the tool's answer after a call, and some reject the answer.
    """
    for answer in ([_answer()], []):
        output = render([_USER, call.message, *answer], None) or ""
        if _TOOL in output:
            return output
    return ""


def _answer(content: str = "42") -> Message:
    return {"role": "tool", "content": content, "tool_call_id": _CALL_ID, "name": "weir_answer"}


def _has_arguments(output: str) -> bool:
    """Whether the arguments are in the output as JSON, or in a form such as XML.

    Not if they were appended with Python's `str`, or quoted as a JSON string.
    """
    quoted = (f"'{_KEY}'", f'\\"{_KEY}')
    return _KEY in output and _VALUE in output and not any(mark in output for mark in quoted)


def _arguments_form(render: Render, call: _Call) -> ArgumentsForm:
    if isinstance(call.arguments, str):
        return ArgumentsForm.TEXT
    takes_text = _render_call(render, call._replace(arguments=_ARGUMENTS_TEXT))
    return ArgumentsForm.OBJECT_OR_TEXT if takes_text else ArgumentsForm.OBJECT


def _renders_tools(render: Render) -> bool:
    system: Message = {"role": "system", "content": _TEXT}
    return any(_TOOL in (render(each, _TOOLS) or "") for each in ([_USER], [system, _USER]))


def _renders(render: Render, call: _Call | None, field: str) -> bool:
    """Whether a field of the assistant's message with a call, or of its answer, is rendered."""
    message: Message = {"role": "assistant", "content": "Hi"} if call is None else call.message
    conversation = [_USER, {**message, field: _TEXT}, _USER if call is None else _answer()]
    return _TEXT in (render(conversation, None) or "")


def _renders_tool_messages(render: Render, call: _Call | None) -> bool:
    before: Message = {"role": "assistant", "content": "Hi"} if call is None else call.message
    return _TEXT in (render([_USER, before, _answer(_TEXT)], None) or "")
