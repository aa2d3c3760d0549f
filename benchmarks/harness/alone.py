"""Runs one sequence at a time through an engine."""

from __future__ import annotations

from inference.engine.engine import Engine
from inference.engine.interface import Finish
from inference.scheduler.sequence import Sequence


def run_alone(engine: Engine, sequence: Sequence) -> Finish:
    """Runs the sequence to its end; the engine has no other work."""
    engine.add(sequence)
    while engine.has_work:
        engine.step()
    assert sequence.finish is not None
    return sequence.finish
