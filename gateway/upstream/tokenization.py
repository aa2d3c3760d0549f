"""Encoding and decoding with a model's tokenizer: requests and answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gateway.upstream.field_names import FieldNames
from mesh.protocol.chat import ChatPrompt


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
