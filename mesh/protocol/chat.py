"""Conversations: messages, the prompt made of them, and the choice between tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from mesh.v1 import common_pb2, orchestrator_pb2

MAX_MESSAGES = 2048
"""Maximum number of messages in a conversation, as in OpenAI's API."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatMessage:
    """One message of a conversation."""

    role: str
    content: str
    name: str = ""
    tool_calls_json: str = ""
    """The assistant's tool calls: a JSON array in OpenAI's format, or empty."""
    tool_call_id: str = ""
    """The call that a message of role `tool` answers."""
    reasoning_content: str = ""
    """The assistant's reasoning before the content, without its tags."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatPrompt:
    """A conversation, to be rendered by the model's chat template."""

    messages: Sequence[ChatMessage]
    tools_json: str = ""
    """Tools that the model may call: a JSON array in OpenAI's format, or empty."""
    continue_final_message: bool = False
    """Leave the last assistant message open instead of starting a new one."""
    template_kwargs_json: str = ""
    """Further variables for the template: a JSON object, or empty."""
    omit_generation_prompt: bool = False
    """Do not begin the assistant's answer at the end of the prompt."""
    merge_system_messages: bool = False
    """Where the template renders no system messages, put their text before the next message's."""


class ToolPrompt(StrEnum):
    """How the tools of a conversation are described to the model."""

    NONE = ""
    """The conversation has no tools."""
    TEMPLATE = "template"
    """In the chat template's own format."""
    GENERIC = "generic"
    """In a generic description (Hermes format), because the template does not render tools."""


_TOOL_PROMPT_TO_PROTO: Mapping[ToolPrompt, common_pb2.ToolPrompt.ValueType] = {
    ToolPrompt.NONE: common_pb2.TOOL_PROMPT_UNSPECIFIED,
    ToolPrompt.TEMPLATE: common_pb2.TOOL_PROMPT_TEMPLATE,
    ToolPrompt.GENERIC: common_pb2.TOOL_PROMPT_GENERIC,
}
_TOOL_PROMPT_FROM_PROTO: Mapping[int, ToolPrompt] = {
    number: prompt for prompt, number in _TOOL_PROMPT_TO_PROTO.items()
}


class ToolChoice(NamedTuple):
    """Which tools the model calls; by default the model decides."""

    required: bool = False
    """At least one call and no other text."""
    name: str = ""
    """Exactly one call, of this tool; empty: any tool."""
    single: bool = False
    """At most one call."""


def chat_to_proto(prompt: ChatPrompt) -> common_pb2.ChatPrompt:
    """Convert to protobuf."""
    return common_pb2.ChatPrompt(
        messages=[
            common_pb2.ChatMessage(
                role=message.role,
                content=message.content,
                name=message.name,
                tool_calls_json=message.tool_calls_json,
                tool_call_id=message.tool_call_id,
                reasoning_content=message.reasoning_content,
            )
            for message in prompt.messages
        ],
        tools_json=prompt.tools_json,
        continue_final_message=prompt.continue_final_message,
        template_kwargs_json=prompt.template_kwargs_json,
        omit_generation_prompt=prompt.omit_generation_prompt,
        merge_system_messages=prompt.merge_system_messages,
    )


def chat_from_proto(message: common_pb2.ChatPrompt) -> ChatPrompt:
    """Convert from protobuf."""
    return ChatPrompt(
        messages=tuple(
            ChatMessage(
                role=each.role,
                content=each.content,
                name=each.name,
                tool_calls_json=each.tool_calls_json,
                tool_call_id=each.tool_call_id,
                reasoning_content=each.reasoning_content,
            )
            for each in message.messages
        ),
        tools_json=message.tools_json,
        continue_final_message=message.continue_final_message,
        template_kwargs_json=message.template_kwargs_json,
        omit_generation_prompt=message.omit_generation_prompt,
        merge_system_messages=message.merge_system_messages,
    )


def chat_from_bytes(serialized: bytes) -> ChatPrompt:
    """Convert a serialized protobuf message."""
    return chat_from_proto(common_pb2.ChatPrompt.FromString(serialized))


def tool_prompt_to_proto(prompt: ToolPrompt) -> common_pb2.ToolPrompt.ValueType:
    """Convert to protobuf."""
    return _TOOL_PROMPT_TO_PROTO[prompt]


def tool_prompt_from_proto(number: int) -> ToolPrompt:
    """Convert from protobuf; an unknown number is NONE."""
    return _TOOL_PROMPT_FROM_PROTO.get(number, ToolPrompt.NONE)


def tool_choice_to_proto(choice: ToolChoice) -> orchestrator_pb2.ToolChoice:
    """Convert to protobuf."""
    return orchestrator_pb2.ToolChoice(
        required=choice.required, name=choice.name, single=choice.single
    )


def tool_choice_from_proto(message: orchestrator_pb2.ToolChoice) -> ToolChoice:
    """Convert from protobuf."""
    return ToolChoice(message.required, message.name, message.single)
