"""Adapts a conversation to what its chat template renders, so that nothing is lost silently."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tokenizer.adaptation.capabilities import Capabilities
from tokenizer.adaptation.tool_prompt import (
    with_answers_as_user,
    with_calls_as_text,
    with_tool_prompt,
)
from tokenizer.chat.conversation import Conversation, Message


def adapt(conversation: Conversation, template: Capabilities) -> Conversation:
    """Returns the conversation as `template` needs it.

    Messages of role `developer` become system messages. Tools, calls and answers of tools that the
    template would omit or reject become text. The content of a message that has only calls becomes
    null if the template needs it, and its reasoning is in the field that the template reads.
    """
    messages: Sequence[Message] = conversation.messages
    if not template.developer_messages:
        messages = [_as_system(message) for message in messages]
    if conversation.merge_system_messages and not template.system_messages:
        messages = _merge_system(messages)
    if template.thinking:
        messages = [_with_thinking(message) for message in messages]
    if not template.tool_calls:
        messages = [with_calls_as_text(message) for message in messages]
    elif template.null_content:
        messages = [_with_null_content(message) for message in messages]
    if not template.tool_messages:
        messages = with_answers_as_user(messages)
    tools = conversation.tools
    if tools is not None and not template.tools:
        messages = with_tool_prompt(messages, tools, system_messages=template.system_messages)
        tools = None
    return replace(conversation, messages=list(messages), tools=tools)


def _as_system(message: Message) -> Message:
    return {**message, "role": "system"} if message["role"] == "developer" else message


def _merge_system(messages: Sequence[Message]) -> list[Message]:
    """The text of each system message before that of the next message."""
    merged: list[Message] = []
    texts: list[str] = []
    for message in messages:
        if message["role"] == "system":
            texts.append(str(message["content"]))
            continue
        merged.append({**message, "content": "\n\n".join([*texts, str(message["content"])])})
        texts = []
    return merged or list(messages)


def _with_thinking(message: Message) -> Message:
    if "reasoning_content" not in message:
        return message
    return {**message, "thinking": message["reasoning_content"]}


def _with_null_content(message: Message) -> Message:
    only_calls = "tool_calls" in message and not message["content"]
    return {**message, "content": None} if only_calls else message
