"""Builds conversations from OpenAI's JSON, and encodes them without worker processes."""

from __future__ import annotations

import json
from typing import Any

from mesh.protocol.chat import ChatMessage, ChatPrompt
from tokenizer.rendering.prompt_renderer import PromptRenderer
from tokenizer.tokenizer import Tokenizer


def chat(messages: list[Any], *, tools: list[Any] | None = None, **fields: Any) -> ChatPrompt:
    """The request with these messages, as the gateway builds it."""
    return ChatPrompt(
        messages=[
            ChatMessage(
                role=message["role"],
                content=message.get("content") or "",
                name=message.get("name", ""),
                tool_calls_json=json.dumps(calls) if (calls := message.get("tool_calls")) else "",
                tool_call_id=message.get("tool_call_id", ""),
                reasoning_content=message.get("reasoning_content", ""),
            )
            for message in messages
        ],
        tools_json=json.dumps(tools) if tools else "",
        template_kwargs_json=json.dumps(fields.pop("template_kwargs", {})),
        **fields,
    )


def encode(tokenizer: Tokenizer, prompt: ChatPrompt) -> list[int]:
    """Renders and encodes a request in this process."""
    renderer = PromptRenderer(tokenizer.format)
    rendered = renderer.render(prompt, renderer.find_capabilities(), max_characters=1_000_000)
    return tokenizer.encode_segments(rendered.segments)
