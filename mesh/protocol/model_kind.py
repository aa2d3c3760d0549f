"""What a model computes, and what a text to embed is used for."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from mesh.v1 import common_pb2


class ModelKind(StrEnum):
    """What a model computes."""

    GENERATION = "generation"
    """Text; its hidden states also give embeddings."""
    EMBEDDING = "embedding"
    """An encoder: embeddings."""
    SCORE = "score"
    """A cross-encoder: scores of pairs of texts."""


KIND_TO_PROTO = {
    ModelKind.GENERATION: common_pb2.MODEL_KIND_GENERATION,
    ModelKind.EMBEDDING: common_pb2.MODEL_KIND_EMBEDDING,
    ModelKind.SCORE: common_pb2.MODEL_KIND_SCORE,
}

_KIND_FROM_PROTO = {number: kind for kind, number in KIND_TO_PROTO.items()}


def kind_from_proto(number: int) -> ModelKind:
    """Convert from protobuf. Services of earlier versions send no kind: they generate."""
    return _KIND_FROM_PROTO.get(common_pb2.ModelKind.ValueType(number), ModelKind.GENERATION)


InputUse = Literal["", "query", "document"]
"""What a text to embed is used for; "" if it is not known."""

INPUT_TYPES: dict[InputUse, common_pb2.InputType.ValueType] = {
    "": common_pb2.INPUT_TYPE_UNSPECIFIED,
    "query": common_pb2.INPUT_TYPE_QUERY,
    "document": common_pb2.INPUT_TYPE_DOCUMENT,
}

_USES: dict[int, InputUse] = {number: use for use, number in INPUT_TYPES.items()}


def input_use_from_proto(number: int) -> InputUse:
    """Convert from protobuf; an unknown number is no use."""
    return _USES.get(number, "")
