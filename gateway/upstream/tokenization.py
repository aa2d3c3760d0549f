"""Encoding and decoding with a model's tokenizer: requests, answers, and their protobuf form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gateway.upstream.field_names import FieldNames
from mesh.protocol.chat import ChatPrompt, chat_to_proto
from mesh.v1 import orchestrator_pb2


class Tokenization(NamedTuple):
    """A prompt to encode; an empty `model` selects the only served one."""

    model: str
    prompt: ChatPrompt | str
    add_special_tokens: bool
    return_token_strs: bool
    names: FieldNames
    """Names of the fields in errors."""


class Tokenized(NamedTuple):
    """The tokens of a prompt."""

    model: str
    token_ids: Sequence[int]
    token_strs: Sequence[str]
    """The tokens as the vocabulary spells them; empty unless the request asks for them."""
    context_length: int


class Detokenization(NamedTuple):
    """Token ids to decode; an empty `model` selects the only served one."""

    model: str
    token_ids: Sequence[int]
    names: FieldNames
    """Names of the fields in errors."""


class Detokenized(NamedTuple):
    """The text of token ids."""

    model: str
    text: str


def tokenize_request(tokenization: Tokenization) -> orchestrator_pb2.TokenizeRequest:
    """Convert to protobuf."""
    request = orchestrator_pb2.TokenizeRequest(
        model=tokenization.model,
        add_special_tokens=tokenization.add_special_tokens,
        return_token_strs=tokenization.return_token_strs,
    )
    if isinstance(tokenization.prompt, str):
        request.text = tokenization.prompt
    else:
        request.chat.CopyFrom(chat_to_proto(tokenization.prompt))
    return request


def tokenized(response: orchestrator_pb2.TokenizeResponse) -> Tokenized:
    """Convert from protobuf."""
    return Tokenized(
        response.model, response.token_ids, response.token_strs, response.context_length
    )


def detokenize_request(detokenization: Detokenization) -> orchestrator_pb2.DetokenizeRequest:
    """Convert to protobuf."""
    return orchestrator_pb2.DetokenizeRequest(
        model=detokenization.model, token_ids=detokenization.token_ids
    )
