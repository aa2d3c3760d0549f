"""Constraints as the grammar library takes them, and what is wrong with those it rejects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from llguidance import LLMatcher, LLParserLimits

from inference.engine.errors import InvalidSamplingParams
from inference.structured_output.constraint import invalid_constraint
from inference.structured_output.matcher import first_line
from inference.structured_output.schema import adapt_schema, subschemas
from inference.structured_output.schema_error import Path, Schema, SchemaError, path_text
from mesh.protocol.constraints import ConstraintForm, OutputConstraint

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

MAX_LEXER_STATES = 50_000
"""Limits the memory of a malicious constraint's masks to about 100 MB."""

LIMITS = LLParserLimits(max_lexer_states=MAX_LEXER_STATES, verbose_errors=False)

_JSON_OPTIONS: JsonCompileOptions = {"whitespace_pattern": r"\n?( {0,24}|\t{0,8})"}
"""Limits white space: small models otherwise generate it without end."""

_OPTIONS_KEY = "x-guidance"
"""The library's options in a schema. A client's are an unknown keyword, which has no effect: they
could switch checks off."""

_COMPACT = {"whitespace_pattern": ""}
"""The options that the orchestrator sets, for the arguments of forced tool calls."""

_ANY_OBJECT = '{"type":"object"}'


def build_grammar(constraint: OutputConstraint, *, close_objects: bool) -> str:
    """The library's form of a constraint, as JSON. Raises `InvalidSamplingParams`.

    `close_objects` is described at `inference.structured_output.schema.adapt_schema`.
    """
    match constraint.form:
        case ConstraintForm.JSON_SCHEMA:
            field = constraint.field
            return _json_grammar(_adapted(constraint.text, field, close_objects), field)
        case ConstraintForm.JSON_OBJECT:
            return LLMatcher.grammar_from_json_schema(_ANY_OBJECT, defaults=_JSON_OPTIONS)
        case ConstraintForm.REGEX:
            return LLMatcher.grammar_from_regex(constraint.text)
        case ConstraintForm.GRAMMAR:
            rules = [constraint.text]
            for rule in constraint.schema_rules:
                schema = _adapted(rule.json_schema, rule.field, close_objects)
                schema = {_OPTIONS_KEY: _JSON_OPTIONS, **schema}
                rules.append(f"{rule.name}: %json {_dumps(schema, rule.field)}")
            return LLMatcher.grammar_from_lark("\n".join(rules))


def rejected(
    constraint: OutputConstraint, message: str, *, close_objects: bool
) -> InvalidSamplingParams:
    """The error for a constraint that the library rejects with a message.

    It names the schema and the place in it that the library rejects on its own, if there is one.
    """
    for field, text in _schemas(constraint):
        schema = _adapted(text, field, close_objects)
        problem = _problem(schema)
        if problem is not None:
            return _invalid(field, f"is not valid: {_located(schema, problem)}")
    return invalid_constraint(constraint, f"is not valid: {_reason(message)}")


def _schemas(constraint: OutputConstraint) -> Iterator[tuple[str, str]]:
    """The fields and texts of the JSON schemas in a constraint."""
    if constraint.form is ConstraintForm.JSON_SCHEMA:
        yield constraint.field, constraint.text
    for rule in constraint.schema_rules:
        yield rule.field, rule.json_schema


def _adapted(text: str, field: str, close_objects: bool) -> Schema:
    """A schema as the library can enforce it: an object. Raises `InvalidSamplingParams`."""
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _invalid(field, f"is not valid JSON: {error}") from error
    if not isinstance(schema, dict | bool):
        kind = type(schema).__name__
        raise _invalid(field, f"must be an object, true or false. Given: {kind}")
    if schema is False:
        raise _invalid(field, "allows no value. Given: false")
    if isinstance(schema, dict) and schema.get(_OPTIONS_KEY, _COMPACT) != _COMPACT:
        del schema[_OPTIONS_KEY]
    try:
        return {} if schema is True else adapt_schema(schema, close_objects=close_objects)
    except SchemaError as error:
        place = f"at {path_text(error.path)}: " if error.path else ""
        raise _invalid(field, f"is not valid: {place}{error.problem}") from error


def _json_grammar(schema: Schema, field: str) -> str:
    try:
        return LLMatcher.grammar_from_json_schema(_dumps(schema, field), defaults=_JSON_OPTIONS)
    except ValueError as error:
        raise _invalid(field, f"is not valid: {error}") from error


def _dumps(schema: Schema, field: str) -> str:
    try:
        return json.dumps(schema, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise _invalid(field, "must have finite numbers only") from error


def _problem(schema: Schema) -> str | None:
    """Why the library rejects a schema on its own; None if it does not."""
    try:
        grammar = LLMatcher.grammar_from_json_schema(schema, defaults=_JSON_OPTIONS)
        message = LLMatcher.validate_grammar(grammar, limits=LIMITS)
    except ValueError as error:
        message = str(error)
    return None if not message or message.startswith("WARNING") else _reason(message)


def _located(schema: Schema, problem: str) -> str:
    """The problem, after the path of the innermost schema that has the same problem alone."""
    path: Path = ()
    inner: Any = schema
    while True:
        for step, member in subschemas(inner):
            if isinstance(member, dict) and _problem(_with_definitions(member, schema)) == problem:
                path, inner = path + step, member
                break
        else:
            return f"at {path_text(path)}: {problem}" if path else problem


def _with_definitions(member: Schema, root: Schema) -> Schema:
    """A part of a schema, with the definitions that its references may lead to."""
    definitions: Schema = {key: root[key] for key in ("$defs", "definitions") if key in root}
    return {**definitions, **member}


_CLEARER = {
    "oneOf constraints are not supported": (
        "oneOf must have options of which no value matches two, such as objects with different "
        "constants in a required property; use anyOf otherwise"
    ),
    "invalid multiple of": "multipleOf must be greater than 0",
}
"""Texts instead of the library's, by their beginnings."""


def _reason(text: str) -> str:
    """The first line of a message, followed by its first line that starts with "error: "."""
    for beginning, clearer in _CLEARER.items():
        if text.startswith(beginning):
            return clearer
    detail = [line for line in text.splitlines() if line.startswith("error: ")]
    return ": ".join([first_line(text), *(line.removeprefix("error: ") for line in detail[:1])])


def _invalid(field: str, problem: str) -> InvalidSamplingParams:
    return InvalidSamplingParams(f"{field} {problem}", field=field.partition(" ")[0])
