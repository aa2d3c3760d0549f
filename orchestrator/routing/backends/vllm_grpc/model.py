"""What a vLLM engine reports of its model: default sampling parameters and files."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from mesh.hub.vocabulary import VocabularyError, vocabulary_sha256
from mesh.protocol.sampling_params import BOUNDS

logger = logging.getLogger("orchestrator.routing.vllm")

_NAMES = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


class SamplingDefaults(NamedTuple):
    """The model's own sampling parameters (generation_config.json); None: vLLM's default."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    @classmethod
    def parse(cls, text: str) -> SamplingDefaults:
        """From the JSON object that the engine sends; values out of bounds are left out."""
        values = _object(text)
        return cls(**{name: values[name] for name in _NAMES if _is_valid(name, values.get(name))})


class ModelFiles(NamedTuple):
    """What a model's files say; empty if the engine does not serve them."""

    vocabulary_sha256: str = ""
    eos_token_ids: frozenset[int] = frozenset()


def read_files(files: Mapping[str, bytes]) -> ModelFiles:
    """The vocabulary's digest and the end-of-sequence tokens. Takes a second for a large one."""
    digest = ""
    if "tokenizer.json" in files:
        try:
            digest = vocabulary_sha256(files["tokenizer.json"])
        except VocabularyError as error:
            logger.warning("vocabulary not read", extra={"error": str(error)})
    eos: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        value = _object(files.get(name, b"")).get("eos_token_id")
        values = value if isinstance(value, list) else [value]
        eos.update(each for each in values if type(each) is int and each >= 0)
    return ModelFiles(digest, frozenset(eos))


def _object(text: str | bytes) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        logger.warning("engine's JSON not read")
        return {}
    return value if isinstance(value, dict) else {}


def _is_valid(name: str, value: object) -> bool:
    kinds = (int,) if name == "top_k" else (int, float)
    return type(value) in kinds and BOUNDS[name].allow(value)  # type: ignore[arg-type]
