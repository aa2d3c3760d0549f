"""The digest by which replicas of a model recognise each other as equal."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Set
from pathlib import Path
from typing import TYPE_CHECKING

from inference.engine.errors import ModelLoadError
from inference.model.weights.weights import Weights
from mesh.hub.vocabulary import VocabularyError, vocabulary_sha256

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_ALWAYS_INCLUDED = frozenset(
    {"default_sampling", "low_freq_factor", "high_freq_factor", "original_max_position"}
)
"""Fields with defaults that the first digests had. Later ones are included if they differ from
their defaults: a model without a new feature keeps its digest, so that engines of both versions
serve it together while they are replaced."""


def model_sha256(config: DataclassInstance, dtype: str, vocabulary: str, weights: Weights) -> str:
    """Hexadecimal SHA-256 of all that decides what a model computes. Reads the files.

    `dtype` is the type of the weights in memory, `vocabulary` the digest of the vocabulary.
    """
    settings = json.dumps(config, sort_keys=True, default=_to_json)
    digest = hashlib.sha256(json.dumps([settings, dtype, vocabulary]).encode())
    for sample in weights.samples():
        digest.update(sample)
    return digest.hexdigest()


def _to_json(value: object) -> object:
    """The fields of a dataclass, or the items of a set in order."""
    if isinstance(value, Set):
        return sorted(value)
    assert dataclasses.is_dataclass(value)
    return {
        each.name: item
        for each in dataclasses.fields(value)
        if (item := getattr(value, each.name)) != each.default or each.name in _ALWAYS_INCLUDED
    }


def read_vocabulary_sha256(folder: Path) -> str:
    """The digest of the vocabulary in tokenizer.json; empty without that file.

    Raises ModelLoadError if the file has no readable vocabulary.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return ""
    try:
        return vocabulary_sha256(path.read_bytes())
    except VocabularyError as error:
        raise ModelLoadError(f"{path}: {error}") from error
