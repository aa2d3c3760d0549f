"""The form that a sequence's text must have; what it means is `vocabulary`'s to know."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from inference.engine.errors import InvalidSamplingParams

MAX_CHARACTERS = 100_000
"""Of a schema, an expression or a grammar."""


class ConstraintForm(StrEnum):
    """How a constraint is written; each is the name of its field."""

    JSON_SCHEMA = "json_schema"
    JSON_OBJECT = "json_object"
    REGEX = "regex"
    GRAMMAR = "grammar"


@dataclass(frozen=True, slots=True)
class Constraint:
    """A form and its text; raises `InvalidSamplingParams` where the text has no fit length."""

    form: ConstraintForm
    text: str = ""
    """The schema, the expression or the grammar (Lark's notation); empty for any JSON object."""

    def __post_init__(self) -> None:
        if self.form is ConstraintForm.JSON_OBJECT:
            return
        if not 1 <= len(self.text) <= MAX_CHARACTERS:
            raise self.invalid(
                f"must hold between 1 and {MAX_CHARACTERS} characters. Given: {len(self.text)}"
            )

    @property
    def field(self) -> str:
        """The field that a message about this constraint names."""
        return f"constraint.{self.form}"

    def invalid(self, problem: str) -> InvalidSamplingParams:
        """The error that says what is wrong with it."""
        return InvalidSamplingParams(f"{self.field} {problem}", field=self.field)
