"""The prompt of a generation: a conversation, raw text or token ids."""

from __future__ import annotations

from typing import TypeAlias

from mesh.errors import invalid
from mesh.protocol.chat import ChatPrompt, chat_from_proto, chat_to_proto
from mesh.protocol.tokens import TokenIds
from mesh.v1 import orchestrator_pb2

Prompt: TypeAlias = ChatPrompt | TokenIds | str


AnyRequest: TypeAlias = orchestrator_pb2.GenerateRequest | orchestrator_pb2.CountTokensRequest
"""Requests that have a prompt."""


def set_prompt(request: AnyRequest, prompt: Prompt) -> None:
    """Set the prompt of a request."""
    if isinstance(prompt, str):
        request.text = prompt
    elif isinstance(prompt, TokenIds):
        request.token_ids.ids.extend(prompt.ids)
        request.token_ids.SetInParent()
    else:
        request.chat.CopyFrom(chat_to_proto(prompt))


def prompt_from_proto(request: AnyRequest) -> Prompt:
    """The prompt of a request. Raises MeshError (INVALID_REQUEST) if there is none."""
    match request.WhichOneof("prompt"):
        case "chat":
            return chat_from_proto(request.chat)
        case "text":
            return request.text
        case "token_ids":
            if not request.token_ids.ids:
                raise invalid("prompt", "prompt must have at least one token, given none")
            return TokenIds(list(request.token_ids.ids))
    raise invalid("prompt", "one of chat, text and token_ids must be given")
