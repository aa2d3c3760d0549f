"""Values of arguments that a model did not write as JSON, by the schema of the tool."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Collection, Mapping

_OF_PYTHON: Mapping[type, str] = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    list: "array",
    dict: "object",
    type(None): "null",
}

_SURROGATE = re.compile("[\ud800-\udfff]")


def json_text(value: object) -> str:
    """A value as JSON that is valid Unicode. Raises as json.dumps without NaN."""
    return without_surrogates(json.dumps(value, ensure_ascii=False, allow_nan=False))


def without_surrogates(text: str) -> str:
    """JSON with its lone surrogates, which a model wrote as escapes, as escapes again."""
    return _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def schema_of(tools: Collection[str], name: str) -> Mapping[str, object]:
    """The schema of a tool's parameters; empty if `tools` has names only."""
    schema = tools.get(name) if isinstance(tools, Mapping) else None
    return schema if isinstance(schema, Mapping) else {}


def types_of(schema: Mapping[str, object], key: str) -> set[str]:
    """JSON types that a parameter may have; empty if the schema does not say."""
    properties = schema.get("properties")
    declared = properties.get(key) if isinstance(properties, Mapping) else None
    return _types(declared, depth=3)


def _types(schema: object, depth: int) -> set[str]:
    if not isinstance(schema, Mapping) or not depth:
        return set()
    given = schema.get("type")
    if isinstance(given, str):
        return {given}
    if isinstance(given, list):
        return {each for each in given if isinstance(each, str)}
    values = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(values, list):
        return {_OF_PYTHON.get(type(each), "") for each in values}
    types: set[str] = set()
    for word in ("anyOf", "oneOf", "allOf"):
        members = schema.get(word)
        for member in members if isinstance(members, list) else ():
            types |= _types(member, depth - 1)
    return types


def json_of(text: str, types: Collection[str] = ()) -> str:
    """A value as JSON: JSON or a Python literal of one of the types; otherwise a string."""
    stripped = text.strip()
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(stripped)
            encoded = json_text(value)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            continue
        if _is_allowed(value, types):
            return encoded
    lower = stripped.lower()
    if lower in ("true", "false", "null", "none"):
        literal = lower.replace("none", "null")
        if _is_allowed(json.loads(literal), types):
            return literal
    return json.dumps(text, ensure_ascii=False)


def _is_allowed(value: object, types: Collection[str]) -> bool:
    kind = _OF_PYTHON.get(type(value), "")
    return not types or kind in types or (kind == "integer" and "number" in types)
