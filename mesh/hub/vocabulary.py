"""The digest of a tokenizer's vocabulary: it decides whether a tokenizer and an engine agree."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any


class VocabularyError(ValueError):
    """tokenizer.json has no readable vocabulary; the message names the field."""


def vocabulary_sha256(tokenizer_json: bytes) -> str:
    """The digest of a file's vocabulary, see `digest_of`. Raises VocabularyError."""
    return digest_of(parse(tokenizer_json))


def parse(tokenizer_json: bytes) -> dict[str, Any]:
    """The JSON object in a file. Raises VocabularyError."""
    try:
        content = json.loads(tokenizer_json)
    except (ValueError, RecursionError) as error:
        raise VocabularyError(f"is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise VocabularyError("is not a JSON object")
    return content


def digest_of(content: Mapping[str, Any]) -> str:
    """Hexadecimal SHA-256 over every id and its token, added tokens included, sorted by id.

    Files that differ only in other settings, such as truncation or the order of their keys, have
    the same digest, because their ids mean the same. Raises VocabularyError.
    """
    _check_merges(content)
    digest = hashlib.sha256()
    for number, token in sorted({*_model_tokens(content), *_added_tokens(content)}):
        line = f"{number} {len(token)} {token}\n"
        digest.update(line.encode(errors="surrogatepass"))
    return digest.hexdigest()


def _model_tokens(content: Mapping[str, Any]) -> Iterable[tuple[int, str]]:
    model = content.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):  # BPE, WordPiece and WordLevel: ids by token
        for number in vocabulary.values():
            _check_id(number, "model.vocab")
        return zip(vocabulary.values(), vocabulary, strict=True)
    if isinstance(vocabulary, list):  # Unigram: a token and its score, in the order of the ids
        for number, entry in enumerate(vocabulary):
            if not isinstance(entry, list) or not entry or not isinstance(entry[0], str):
                raise VocabularyError(f"model.vocab[{number}] must be a token and its score")
        return enumerate(entry[0] for entry in vocabulary)
    raise VocabularyError("model.vocab must be an object or a list")


def _check_merges(content: Mapping[str, Any]) -> None:
    """The tokenizers library aborts the process if a merge lacks the prefix that it cuts off."""
    model = content.get("model")
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


def _added_tokens(content: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
    added = content.get("added_tokens") or []
    if not isinstance(added, list):
        raise VocabularyError("added_tokens must be a list")
    for entry in added:
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise VocabularyError("added_tokens must be objects with id and content")
        _check_id(entry.get("id"), "added_tokens")
        yield entry["id"], entry["content"]


def _check_id(value: object, field: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 32:
        raise VocabularyError(
            f"{field} must have token ids from 0 to 2**32 - 1, given {value!r:.99}"
        )
