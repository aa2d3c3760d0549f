"""The values of a generation that only the orchestrator knows; the shared ones are in mesh."""

from __future__ import annotations

from typing import NamedTuple

from mesh.protocol.deltas import Delta
from mesh.protocol.finish import GenerationFinish, GenerationStarted


class ModelInfo(NamedTuple):
    """What a replica serves."""

    name: str
    context_length: int
    eos_token_ids: frozenset[int] = frozenset()


class Progress(NamedTuple):
    """All of a generation that became known at once; at least one is set, and in this order."""

    started: GenerationStarted | None = None
    delta: Delta | None = None
    finish: GenerationFinish | None = None
