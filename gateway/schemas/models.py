"""`GET /v1/models`."""

from __future__ import annotations

from typing import Literal

from gateway.schemas.common import Answer


class Model(Answer):
    """A served model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    kind: Literal["generation", "embedding", "score"]
    max_model_len: int


class ModelList(Answer):
    """All served models."""

    object: Literal["list"]
    data: list[Model]
