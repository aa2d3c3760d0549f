"""The end-of-sequence tokens that a tokenizer's files name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping


def end_tokens(
    files: Mapping[str, bytes | bytearray], token_id: Callable[[str], int | None]
) -> frozenset[int]:
    """Those of generation_config.json, and the one of tokenizer_config.json.

    `token_id` returns the id of a token; None if there is no such token. Raises ValueError if a
    file is not JSON.
    """
    generation = _object(files.get("generation_config.json", b"{}")).get("eos_token_id")
    values = generation if isinstance(generation, list) else [generation]
    found = {value for value in values if type(value) is int}
    named = _object(files.get("tokenizer_config.json", b"{}")).get("eos_token")
    text = named.get("content") if isinstance(named, dict) else named
    if isinstance(text, str) and (number := token_id(text)) is not None:
        found.add(number)
    return frozenset(found)


def _object(content: bytes | bytearray) -> dict[str, object]:
    value = json.loads(bytes(content))
    return value if isinstance(value, dict) else {}
