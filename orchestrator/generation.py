"""Values of a generation that only the orchestrator uses; shared values are in mesh.protocol."""

from __future__ import annotations

from typing import NamedTuple

from mesh.protocol.deltas import Delta
from mesh.protocol.finish import GenerationFinish, GenerationStarted
from mesh.protocol.model_kind import ModelKind


class ModelInfo(NamedTuple):
    """The model that a replica serves. Replicas with equal values can replace each other."""

    name: str
    context_length: int
    eos_token_ids: frozenset[int] = frozenset()
    vocabulary_sha256: str = ""
    """Digest of the vocabulary; empty if the replica does not report it."""
    model_sha256: str = ""
    """Digest of weights, their type and settings; empty if the replica does not report it."""
    kind: ModelKind = ModelKind.GENERATION
    embedding_length: int = 0
    """Number of values of an embedding; 0: unknown, or the model has none."""
    base: str = ""
    """Name of the model that this LoRA adapter is for; empty if it is no adapter."""

    @property
    def tokenizer(self) -> str:
        """Name of the model whose tokenizer it uses."""
        return self.base or self.name


class ReplicaAdapters(NamedTuple):
    """The LoRA adapters that a replica serves beside its model."""

    models: tuple[ModelInfo, ...] = ()
    allows_loading: bool = False
    paths: tuple[str, ...] = ()
    """What each was loaded from at run time; "" for one of the engine's settings."""


class Progress(NamedTuple):
    """One message of a generation: everything that is ready, in this order; at least one field."""

    started: GenerationStarted | None = None
    delta: Delta | None = None
    finish: GenerationFinish | None = None
