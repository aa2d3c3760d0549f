"""The error for a constraint that the engine rejects."""

from __future__ import annotations

from inference.engine.errors import InvalidSamplingParams
from mesh.protocol.constraints import OutputConstraint, SchemaRule


def invalid_constraint(
    constraint: OutputConstraint, problem: str, rule: SchemaRule | None = None
) -> InvalidSamplingParams:
    """The error that names the constraint's field, or that of one rule, followed by the problem."""
    field = constraint.field if rule is None else rule.field
    return InvalidSamplingParams(f"{field} {problem}", field=field.partition(" ")[0])
