"""The digest by which replicas of a model recognise each other as equal."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from inference.engine.errors import ModelLoadError
from inference.model.weights.weights import Weights
from mesh.hub.vocabulary import VocabularyError, vocabulary_sha256

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def model_sha256(config: DataclassInstance, dtype: str, vocabulary: str, weights: Weights) -> str:
    """Hexadecimal SHA-256 of all that decides what a model computes. Reads the files.

    `dtype` is the type of the weights in memory, `vocabulary` the digest of the vocabulary.
    """
    settings = json.dumps(dataclasses.asdict(config), sort_keys=True, default=sorted)
    digest = hashlib.sha256(json.dumps([settings, dtype, vocabulary]).encode())
    for sample in weights.samples():
        digest.update(sample)
    return digest.hexdigest()


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
