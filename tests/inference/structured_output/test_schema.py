"""JSON schemas as people write them, and what the library is given for them."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from inference.structured_output.grammar import build_grammar
from inference.structured_output.references import check_references
from inference.structured_output.schema import MAX_DEPTH, MAX_OPTIONAL_PROPERTIES, adapt_schema
from inference.structured_output.schema_error import SchemaError, path_text
from mesh.protocol.constraints import ConstraintForm, OutputConstraint

A: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "string"}}}
B: dict[str, Any] = {"type": "object", "properties": {"b": {}}, "required": ["b"]}


def adapt(schema: dict[str, Any], *, close: bool = True) -> dict[str, Any]:
    """The adapted schema; the given one must stay as it is."""
    before = repr(schema)
    adapted = adapt_schema(schema, close_objects=close)
    assert repr(schema) == before
    return adapted


@pytest.mark.parametrize("value", ["binary", "password", "path", "regex", "uri-reference"])
def test_an_unknown_format_is_an_annotation(value: str) -> None:
    """JSON Schema asks for no more; known formats stay."""
    inside = {"type": "array", "items": {"type": "string", "format": value}}
    assert adapt(inside) == {"type": "array", "items": {"type": "string"}}
    assert adapt({"format": "uuid"}) == {"format": "uuid"}


def test_declared_objects_are_closed() -> None:
    """Wherever they are, unless the schema says something about other properties."""
    assert adapt(A)["additionalProperties"] is False
    assert adapt({"anyOf": [A, {"type": "null"}]})["anyOf"][0]["additionalProperties"] is False
    nested = adapt({"$defs": {"A": A}, "properties": {"x": {"$ref": "#/$defs/A"}}})
    assert nested["additionalProperties"] is False
    assert nested["$defs"]["A"]["additionalProperties"] is False
    assert adapt({"allOf": [A]})["allOf"][0]["additionalProperties"] is False


@pytest.mark.parametrize(
    "schema",
    [
        {**A, "additionalProperties": True},
        {**A, "additionalProperties": {"type": "integer"}},
        {**A, "patternProperties": {"^x-": {}}},
        {**A, "required": ["other"]},
        {**A, "minProperties": 2},
        {"type": "object"},
        {"type": "object", "properties": {}},
        {"allOf": [A, B]},
        {**A, "allOf": [B]},
        {**A, "anyOf": [B, {"properties": {"c": {}}}]},
        {**A, "if": {"properties": {"a": {"const": 1}}}, "then": B},
    ],
)
def test_other_objects_stay_open(schema: dict[str, Any]) -> None:
    """A decision of the author, or schemas that describe one object together."""
    assert adapt(schema) == schema
    assert adapt(A, close=False) == A


def test_definitions_that_others_extend_stay_open() -> None:
    """Also through references; a definition that nothing extends is closed."""
    schema = {
        "$defs": {
            "base": A,
            "alias": {"$ref": "#/$defs/base"},
            "child": {"allOf": [{"$ref": "#/$defs/alias"}, B]},
            "other": A,
        },
        "anyOf": [{"$ref": "#/$defs/child"}, {"$ref": "#/$defs/other"}],
    }
    adapted = adapt(schema)
    assert adapted["$defs"]["base"] == A
    assert adapted["$defs"]["child"] == schema["$defs"]["child"]
    assert adapted["$defs"]["other"]["additionalProperties"] is False


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({"minimum": 2**53 + 1}, {"minimum": 2**53 + 2}),
        ({"maximum": 2**53 + 1}, {"maximum": 2**53}),
        ({"exclusiveMinimum": 2**53}, {"minimum": 2**53 + 2}),
        ({"minimum": -(2**53) - 1}, {"minimum": -(2**53)}),
        ({"maximum": 2**63 - 1}, {"maximum": 2**63 - 1}),
        ({"minimum": 0, "maximum": 2**64 - 1}, {"minimum": 0, "maximum": 2**63 - 1}),
        ({"minimum": -(2**63)}, {"minimum": -(2**63) + 1024}),
        ({"minimum": 10**18}, {"minimum": 10**18, "maximum": 2**63 - 1}),
        ({"exclusiveMinimum": 1, "maximum": 9}, {"exclusiveMinimum": 1, "maximum": 9}),
    ],
)
def test_large_integer_bounds_move_inwards(
    bounds: dict[str, int], expected: dict[str, int]
) -> None:
    """To the next number that the library reads exactly."""
    assert adapt({"type": "integer", **bounds}) == {"type": "integer", **expected}


@pytest.mark.parametrize(
    ("schema", "path", "problem"),
    [
        ({"type": "integer", "minimum": 2**70}, "minimum", "64 bits, given 1180591620717411303424"),
        ({"properties": {"n": {"const": 2**53 + 1}}}, "properties.n.const", "9007199254740993"),
        ({"enum": [1, 10**400]}, "enum[1]", "an integer of more than 30 digits"),
        (
            {"properties": {"mail": {"pattern": "^(?!x).*$"}}},
            "properties.mail.pattern",
            "no lookahead or lookbehind, given one at character 1",
        ),
        ({"patternProperties": {"(?<=a)b": {}}}, "patternProperties.(?<=a)b", "lookbehind"),
        ({"items": {"pattern": r"(a)\1"}}, "items.pattern", "no backreferences"),
    ],
)
def test_what_cannot_be_enforced_is_named(schema: dict[str, Any], path: str, problem: str) -> None:
    """The path leads to the keyword."""
    with pytest.raises(SchemaError) as caught:
        adapt(schema)
    assert path_text(caught.value.path) == path
    assert problem in caught.value.problem


def test_a_pattern_may_look_like_a_lookahead() -> None:
    """Escaped, or in a character class."""
    schema = {"type": "string", "pattern": r"\(?=[(?!x)\]]\\"}
    assert adapt(schema) == schema


def test_the_depth_is_limited() -> None:
    """Without recursion: 100,000 levels are refused as well."""
    for depth, is_valid in ((MAX_DEPTH - 1, True), (MAX_DEPTH, False), (100_000, False)):
        schema: dict[str, Any] = {}
        for _ in range(depth):
            schema = {"items": schema}
        if is_valid:
            adapt_schema(schema, close_objects=True)
        else:
            with pytest.raises(SchemaError, match=f"at most {MAX_DEPTH} levels"):
                adapt_schema(schema, close_objects=True)


@pytest.mark.parametrize(
    ("options", "kept"), [({"lenient": True}, False), ({"whitespace_pattern": ""}, True)]
)
def test_a_client_cannot_set_the_options_of_the_library(
    options: dict[str, Any], kept: bool
) -> None:
    """With `lenient` it ignores what it cannot enforce; only the orchestrator's options count."""
    schema = {"x-guidance": options, "type": "object"}
    constraint = OutputConstraint(ConstraintForm.JSON_SCHEMA, json.dumps(schema))
    grammar = build_grammar(constraint, close_objects=True)
    [rule] = json.loads(grammar)["grammars"]
    used = rule["json_schema"]["x-guidance"]
    assert all((used.get(name) == value) is kept for name, value in options.items())


INTEGER = {"type": "integer"}


@pytest.mark.parametrize(
    ("schema", "place", "problem"),
    [
        (
            {**INTEGER, "minimum": 5, "maximum": 3},
            "",
            "must allow an integer, given minimum 5 and maximum 3",
        ),
        (
            {"properties": {"n": {**INTEGER, "exclusiveMinimum": 3, "exclusiveMaximum": 4}}},
            "properties.n",
            "must allow an integer, given exclusiveMinimum 3 and exclusiveMaximum 4",
        ),
        (
            {**INTEGER, "minimum": 2**53 + 1, "maximum": 2**53 + 1},
            "",
            "must allow an integer that a 64-bit float represents exactly, "
            f"given minimum {2**53 + 1} and maximum {2**53 + 1}",
        ),
        ({"$ref": "#"}, "$ref", "must not lead back to its own schema"),
        ({"allOf": [{"$ref": "#"}]}, "$ref", "must not lead back to its own schema"),
        (
            {
                "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
                "properties": {"x": {"$ref": "#/$defs/a"}},
            },
            "$defs.b.$ref",
            "must not lead back to its own schema",
        ),
        (
            {"items": {"properties": {str(n): {} for n in range(2000)}, "required": ["7"]}},
            "items.properties",
            f"must have at most {MAX_OPTIONAL_PROPERTIES} that are not required, given 1999",
        ),
    ],
)
def test_a_schema_without_values_or_too_large_is_refused(
    schema: dict[str, Any], place: str, problem: str
) -> None:
    """The error names the place, the limit and the given value."""
    with pytest.raises(SchemaError) as raised:
        adapt(schema)
    assert path_text(raised.value.path) == place
    assert raised.value.problem.startswith(problem)


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"child": {"$ref": "#"}}},
        {"anyOf": [{"type": "null"}, {"$ref": "#"}]},
        {"$defs": {"a": INTEGER}, "allOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}]},
        {"properties": {str(n): {} for n in range(MAX_OPTIONAL_PROPERTIES)}},
        {
            "properties": {str(n): {} for n in range(1500)},
            "required": [str(n) for n in range(1000)],
        },
    ],
)
def test_recursive_and_large_schemas_are_accepted(schema: dict[str, Any]) -> None:
    """Where a value can end the recursion, and up to the limit."""
    adapt(schema)


def test_references_are_followed_in_linear_time() -> None:
    """A chain of 20,000 takes less than a second."""
    links = {str(n): {"$ref": f"#/$defs/{n + 1}"} for n in range(20_000)}
    began = time.process_time()
    check_references({"$defs": {**links, "20000": INTEGER}, "$ref": "#/$defs/0"})
    assert time.process_time() - began < 2
