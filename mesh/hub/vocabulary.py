"""The digest of a tokenizer's vocabulary: it decides whether a tokenizer and an engine agree."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator


class VocabularyError(ValueError):
    """tokenizer.json has no readable vocabulary; the message names the field."""


def vocabulary_sha256(tokenizer_json: bytes) -> str:
    """Hexadecimal SHA-256 over every id and its token, added tokens included, sorted by id.

    Files that differ only in other settings, such as truncation or the order of their keys, have
    the same digest, because their ids mean the same. Raises VocabularyError.
    """
    try:
        content = json.loads(tokenizer_json)
    except (ValueError, RecursionError) as error:
        raise VocabularyError(f"is not valid JSON: {error}") from error
    _check_merges(content)
    pairs = json.dumps(sorted({*_model_tokens(content), *_added_tokens(content)}))
    return hashlib.sha256(pairs.encode()).hexdigest()


def _model_tokens(content: object) -> Iterator[tuple[int, str]]:
    model = content.get("model") if isinstance(content, dict) else None
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):  # BPE, WordPiece and WordLevel: ids by token
        for token, number in vocabulary.items():
            yield _id(number, "model.vocab"), token
    elif isinstance(vocabulary, list):  # Unigram: a token and its score, in the order of the ids
        for number, entry in enumerate(vocabulary):
            if not isinstance(entry, list) or not entry or not isinstance(entry[0], str):
                raise VocabularyError(f"model.vocab[{number}] must be a token and its score")
            yield number, entry[0]
    else:
        raise VocabularyError("model.vocab must be an object or a list")


def _check_merges(content: object) -> None:
    """The tokenizers library aborts the process if a merge lacks the prefix that it cuts off."""
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or not model.get("continuing_subword_prefix"):
        return
    prefix = model["continuing_subword_prefix"]
    for merge in model.get("merges") or []:
        right = merge[-1] if isinstance(merge, list) and merge else str(merge).rpartition(" ")[2]
        if not str(right).startswith(str(prefix)):
            raise VocabularyError(
                f"model.merges must continue with continuing_subword_prefix ({prefix!r:.20}), "
                f"given {merge!r:.40}"
            )


def _added_tokens(content: dict[str, object]) -> Iterator[tuple[int, str]]:
    added = content.get("added_tokens") or []
    if not isinstance(added, list):
        raise VocabularyError("added_tokens must be a list")
    for entry in added:
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise VocabularyError("added_tokens must be objects with id and content")
        yield _id(entry.get("id"), "added_tokens"), entry["content"]


def _id(value: object, field: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 32:
        raise VocabularyError(
            f"{field} must have token ids from 0 to 2**32 - 1, given {value!r:.99}"
        )
    return value
