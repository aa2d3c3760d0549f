"""The error for a constraint that the engine rejects."""

from __future__ import annotations

from inference.engine.errors import InvalidSamplingParams
from mesh.protocol.constraints import OutputConstraint


def invalid_constraint(constraint: OutputConstraint, problem: str) -> InvalidSamplingParams:
    """The error that names the constraint's field, followed by the problem."""
    return InvalidSamplingParams(f"{constraint.field} {problem}", field=constraint.field)
