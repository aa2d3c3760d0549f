"""Conversations: messages, the prompt made of them, and the choice between tools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mesh.v1 import common_pb2, orchestrator_pb2


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
            )
            for message in prompt.messages
        ],
        tools_json=prompt.tools_json,
        continue_final_message=prompt.continue_final_message,
        template_kwargs_json=prompt.template_kwargs_json,
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
            )
            for each in message.messages
        ),
        tools_json=message.tools_json,
        continue_final_message=message.continue_final_message,
        template_kwargs_json=message.template_kwargs_json,
    )


def tool_choice_to_proto(choice: ToolChoice) -> orchestrator_pb2.ToolChoice:
    """Convert to protobuf."""
    return orchestrator_pb2.ToolChoice(
        required=choice.required, name=choice.name, single=choice.single
    )


def tool_choice_from_proto(message: orchestrator_pb2.ToolChoice) -> ToolChoice:
    """Convert from protobuf."""
    return ToolChoice(message.required, message.name, message.single)
