"""Structured output: the form that a generated text must have."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from mesh.errors import invalid
from mesh.v1 import common_pb2

MAX_CONSTRAINT_CHARACTERS = 1_000_000
"""Longest schema, regular expression or grammar, its schemas included; 128 tools with long schemas
fit. The engine limits the time and memory of compiling them."""


class ConstraintForm(StrEnum):
    """How a constraint is written; each value is the name of a field of `OutputConstraint`."""

    JSON_SCHEMA = "json_schema"
    JSON_OBJECT = "json_object"
    REGEX = "regex"
    GRAMMAR = "grammar"


class SchemaRule(NamedTuple):
    """A rule of a grammar: a JSON value that is valid against a schema."""

    name: str
    json_schema: str
    field: str
    """What an error message calls the schema; its path in the client's request comes first."""


class OutputConstraint(NamedTuple):
    """The form of the text; the engine samples only tokens that keep to it."""

    form: ConstraintForm
    text: str = ""
    """The schema, the regular expression or the grammar (EBNF in Lark's notation); empty for
    `json_object`."""
    schema_rules: tuple[SchemaRule, ...] = ()
    """Further rules of a grammar."""

    @property
    def field(self) -> str:
        """The field's path in a request, for messages."""
        return f"constraint.{self.form}"

    @property
    def problem(self) -> str | None:
        """Why the length is refused; None if it is within its bounds."""
        length = len(self.text) + sum(len(rule.json_schema) for rule in self.schema_rules)
        if self.form is ConstraintForm.JSON_OBJECT or 1 <= length <= MAX_CONSTRAINT_CHARACTERS:
            return None
        return f"must have 1 to {MAX_CONSTRAINT_CHARACTERS} characters, given {length}"


def constraint_to_proto(constraint: OutputConstraint) -> common_pb2.OutputConstraint:
    """Convert to protobuf."""
    if constraint.form is ConstraintForm.JSON_OBJECT:
        return common_pb2.OutputConstraint(json_object=True)
    message = common_pb2.OutputConstraint()
    setattr(message, constraint.form, constraint.text)
    for rule in constraint.schema_rules:
        message.schema_rules.add(name=rule.name, json_schema=rule.json_schema, field=rule.field)
    return message


def constraint_from_proto(message: common_pb2.OutputConstraint) -> OutputConstraint:
    """Convert from protobuf. Raises MeshError (INVALID_REQUEST) if no form is set."""
    name = message.WhichOneof("form")
    if name is None or (name == "json_object" and not message.json_object):
        raise invalid("constraint", f"constraint must have one of {_FORMS}, given none")
    form = ConstraintForm(name)
    if form is ConstraintForm.JSON_OBJECT:
        return OutputConstraint(form)
    rules = tuple(SchemaRule(r.name, r.json_schema, r.field) for r in message.schema_rules)
    return OutputConstraint(form, getattr(message, form), rules)


_FORMS = ", ".join(ConstraintForm)
