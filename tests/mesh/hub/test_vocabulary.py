"""The digest of a tokenizer's vocabulary."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mesh.hub.vocabulary import VocabularyError, vocabulary_sha256

BPE: dict[str, Any] = {
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}},
    "added_tokens": [{"id": 2, "content": "<end>"}],
}


def digest(content: object) -> str:
    return vocabulary_sha256(json.dumps(content).encode())


def test_files_whose_ids_mean_the_same_have_one_digest() -> None:
    """Order of the keys, other settings and the kind of the model do not matter."""
    reordered = {"truncation": {}, "model": {"vocab": {"b": 1, "a": 0}}, **{"added_tokens": []}}
    reordered["added_tokens"] = BPE["added_tokens"]
    unigram = {**BPE, "model": {"type": "Unigram", "vocab": [["a", -1.5], ["b", -2]]}}
    assert digest(BPE) == digest(reordered) == digest(unigram)
    assert len(digest(BPE)) == 64


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"vocab": {"a": 1, "b": 0}}},
        {"model": {"vocab": {"a": 0, "c": 1}}},
        {"added_tokens": [{"id": 3, "content": "<end>"}]},
        {"added_tokens": []},
    ],
)
def test_other_ids_have_another_digest(change: dict[str, Any]) -> None:
    """A swapped, renamed, moved or missing token."""
    assert digest({**BPE, **change}) != digest(BPE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not valid JSON"),
        (b"\xff", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[]", "is not a JSON object"),
        (b'{"model": 1}', "model.vocab must be an object or a list"),
        (b'{"model": {"vocab": {"a": -1}}}', r"token ids from 0 .*given -1"),
        (b'{"model": {"vocab": {"a": "0"}}}', r"token ids from 0 .*given '0'"),
        (
            b'{"model": {"vocab": {}, "continuing_subword_prefix": "##", "merges": [["a", "b"]]}}',
            "must continue with continuing_subword_prefix",
        ),
        (b'{"model": {"vocab": ["a"]}}', r"model\.vocab\[0\] must be a token and its score"),
        (b'{"model": {"vocab": {}}, "added_tokens": {"a": 1}}', "added_tokens must be a list"),
        (b'{"model": {"vocab": {}}, "added_tokens": [1]}', "must be objects with id and content"),
    ],
)
def test_a_broken_file_is_refused_by_field(content: bytes, message: str) -> None:
    """One error class for every way in which the file can be broken."""
    with pytest.raises(VocabularyError, match=message):
        vocabulary_sha256(content)
