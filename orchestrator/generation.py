"""Values of a generation that only the orchestrator uses; shared values are in mesh.protocol."""

from __future__ import annotations

from typing import NamedTuple

from mesh.protocol.deltas import Delta
from mesh.protocol.finish import GenerationFinish, GenerationStarted


class ModelInfo(NamedTuple):
    """The model that a replica serves."""

    name: str
    context_length: int
    eos_token_ids: frozenset[int] = frozenset()


class Progress(NamedTuple):
    """One message of a generation: everything that is ready, in this order; at least one field."""

    started: GenerationStarted | None = None
    delta: Delta | None = None
    finish: GenerationFinish | None = None
