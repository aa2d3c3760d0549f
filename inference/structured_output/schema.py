"""JSON schemas as people write them, adapted to what the grammar library enforces exactly.

The adapted schema allows a subset of what the given one allows: everything that is generated is
valid against the schema as it was written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from inference.structured_output.references import BRANCHES, check_references, references, resolve
from inference.structured_output.schema_error import Path, Schema, SchemaError

MAX_DEPTH = 120
"""Most levels of arrays and objects in a schema; the library parses 128, its own included."""

_FORMATS = frozenset(
    ("date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "unknown")
) | {"uri", "uuid"}
"""Values of `format` that the library enforces; `unknown` is any text."""

_SCHEMA_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_SCHEMA_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_SCHEMAS = ("items", "additionalProperties", "additionalItems", "not", "if", "then", "else")

_EXTENDS_OBJECTS = ("patternProperties", "additionalProperties", "unevaluatedProperties")
"""Keywords with which an object's author has decided about properties that are not declared."""

_BOUNDS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")

MAX_OPTIONAL_PROPERTIES = 500
"""Most properties of one object that are not required. After each of them any later one may
follow: the library has four rules for each, and allows 2,000 at one place."""

_MAX_INT64 = 2**63 - 1
_MIN_EXACT = -(2**63 - 2**10)
"""The least 64-bit integer that is a 64-bit float, and whose negation is a 64-bit integer."""


def adapt_schema(schema: Schema, *, close_objects: bool) -> Schema:
    """The schema for the library. Raises SchemaError with the path of what is not supported.

    An unknown `format` is an annotation, as in JSON Schema. `close_objects`: an object that
    declares properties has no others unless it says so; models otherwise invent them without end.
    """
    _check_depth(schema)
    check_references(schema)
    combined = _combined_definitions(schema)
    adapter = _Adapter(combined, close_objects)
    return adapter.adapt_object(schema, (), combined=() in combined)


def subschemas(schema: Schema) -> Iterator[tuple[Path, Any]]:
    """The schemas directly inside a schema, with their paths from it."""
    for key in _SCHEMA_MAPS:
        members = schema.get(key)
        if isinstance(members, dict):
            yield from (((key, name), member) for name, member in members.items())
    for key in _SCHEMA_LISTS:
        members = schema.get(key)
        if isinstance(members, list):
            yield from (((key, number), member) for number, member in enumerate(members))
    for key in _SCHEMAS:
        if isinstance(schema.get(key), dict):
            yield (key,), schema[key]


def _check_depth(schema: Schema) -> None:
    """Without recursion, because the depth is what may be too great."""
    level: list[Any] = [schema]
    for _ in range(MAX_DEPTH):
        level = [each for value in level for each in _members(value)]
        if not level:
            return
    problem = f"is nested too deeply: at most {MAX_DEPTH} levels of objects and arrays"
    raise SchemaError((), problem)


def _members(value: Any) -> Iterator[Any]:
    members = value.values() if isinstance(value, dict) else value
    return (each for each in members if isinstance(each, dict | list))


def _combined_definitions(root: Schema) -> frozenset[Path]:
    """The places of schemas that are combined with others where a reference leads to them."""
    found: set[Path] = set()
    # A schema, its place, and the place that references in it start from.
    pending: list[tuple[Any, Path, Path]] = [(root, (), ())]
    while pending:
        value, place, base = pending.pop()
        if isinstance(value, dict):
            base = place if "$id" in value else base
            members = list(value.items())
        else:
            members = list(enumerate(value))
        pending += [
            (each, (*place, key), base) for key, each in members if isinstance(each, dict | list)
        ]
        if isinstance(value, dict) and _combines_objects(value):
            following = list(references(value))
            while following:
                target = (*base, *following.pop())
                if target not in found:
                    found.add(target)
                    following += references(resolve(root, target))
    return frozenset(found)


def _combines_objects(schema: Schema) -> bool:
    """Whether several object schemas describe one object, so that none may exclude the others."""
    number = int("properties" in schema) + int("$ref" in schema)
    branches = schema.get("allOf")
    number += len(branches) if isinstance(branches, list) else 0
    for key in ("anyOf", "oneOf"):
        options = schema.get(key)
        if isinstance(options, list):
            number += any(_describes_objects(option) for option in options)
    return number > 1 or any(key in schema for key in ("if", "dependentSchemas"))


def _describes_objects(schema: Any) -> bool:
    keys = ("properties", "$ref", "allOf", "anyOf", "oneOf")
    return isinstance(schema, dict) and any(key in schema for key in keys)


class _Adapter:
    """Rewrites one schema; recursion is bounded by `MAX_DEPTH`."""

    def __init__(self, combined: frozenset[Path], close_objects: bool) -> None:
        self._combined = combined
        self._close_objects = close_objects

    def adapt(self, schema: Any, path: Path, *, combined: bool = False) -> Any:
        """The adapted copy of a schema; `combined`: it is one of several for the same object."""
        if not isinstance(schema, dict):
            return schema
        return self.adapt_object(schema, path, combined=combined)

    def adapt_object(self, schema: Schema, path: Path, *, combined: bool) -> Schema:
        """As `adapt`, for a schema that is an object."""
        inside = combined or _combines_objects(schema)
        adapted = {key: self._member(key, value, path, inside) for key, value in schema.items()}
        if isinstance(schema.get("format"), str) and schema["format"] not in _FORMATS:
            del adapted["format"]
        _check_pattern(schema.get("pattern"), (*path, "pattern"))
        _check_constants(schema, path)
        _check_properties(schema, path)
        if _is_integer(schema.get("type")):
            _narrow_bounds(adapted, path)
        if self._close_objects and not inside and _is_open(schema):
            adapted["additionalProperties"] = False
        return adapted

    def _member(self, key: str, value: Any, path: Path, combined: bool) -> Any:
        """The value of a keyword, with the schemas in it adapted."""
        path = (*path, key)
        if key in _SCHEMA_MAPS and isinstance(value, dict):
            return {name: self._entry(key, name, each, path) for name, each in value.items()}
        if key in _SCHEMA_LISTS and isinstance(value, list):
            together = combined and key in BRANCHES
            return [
                self.adapt(each, (*path, number), combined=together)
                for number, each in enumerate(value)
            ]
        if key in _SCHEMAS:
            return self.adapt(value, path, combined=combined and key in BRANCHES)
        return value

    def _entry(self, key: str, name: str, value: Any, path: Path) -> Any:
        if key == "patternProperties":
            _check_pattern(name, (*path, name))
        combined = key == "dependentSchemas" or (*path, name) in self._combined
        return self.adapt(value, (*path, name), combined=combined)


def _is_open(schema: Schema) -> bool:
    """Whether an object declares properties and says nothing about others."""
    properties = schema.get("properties")
    if not isinstance(properties, dict) or not properties:
        return False
    if any(key in schema for key in _EXTENDS_OBJECTS):
        return False
    required = schema.get("required", ())
    least = schema.get("minProperties", 0)
    return (
        isinstance(required, list | tuple)
        and all(name in properties for name in required)
        and isinstance(least, int | float)
        and least <= len(properties)
    )


def _check_properties(schema: Schema, path: Path) -> None:
    """Raises SchemaError for more optional properties than the library can follow."""
    properties, required = schema.get("properties"), schema.get("required")
    if not isinstance(properties, dict) or len(properties) <= MAX_OPTIONAL_PROPERTIES:
        return
    names = (
        {name for name in required if isinstance(name, str)}
        if isinstance(required, list)
        else set()
    )
    number = len(properties.keys() - names)
    if number > MAX_OPTIONAL_PROPERTIES:
        limit = f"must have at most {MAX_OPTIONAL_PROPERTIES} that are not required"
        raise SchemaError((*path, "properties"), f"{limit}, given {number}")


def _check_pattern(pattern: Any, path: Path) -> None:
    """Raises SchemaError for a pattern that no finite automaton can follow."""
    if not isinstance(pattern, str):
        return
    in_class, position = False, 0
    while position < len(pattern):
        rest = pattern[position : position + 4]
        if rest[0] == "\\":
            if not in_class and len(rest) > 1 and (rest[1] in "123456789" or rest[1:3] == "k<"):
                raise SchemaError(path, f"must have no backreferences, given {rest[:2]!r}")
            position += 1
        elif rest[0] == "[":
            in_class = True
        elif rest[0] == "]":
            in_class = False
        elif not in_class and rest.startswith(("(?=", "(?!", "(?<=", "(?<!")):
            raise SchemaError(
                path, f"must have no lookahead or lookbehind, given one at character {position}"
            )
        position += 1


def _check_constants(schema: Schema, path: Path) -> None:
    """Raises SchemaError for a number that the library would round."""
    if "const" in schema and _is_inexact(schema["const"]):
        raise SchemaError((*path, "const"), _inexact(schema["const"]))
    options = schema.get("enum")
    for number, value in enumerate(options if isinstance(options, list) else ()):
        if _is_inexact(value):
            raise SchemaError((*path, "enum", number), _inexact(value))


def _is_inexact(value: Any) -> bool:
    if not isinstance(value, int) or isinstance(value, bool):
        return False
    return abs(value) > _MAX_INT64 or int(float(value)) != value


def _inexact(value: int) -> str:
    return f"must be an integer that a 64-bit float represents exactly, given {_shown(value)}"


def _is_integer(kind: Any) -> bool:
    kinds = kind if isinstance(kind, list) else [kind]
    return "integer" in kinds and "number" not in kinds


def _narrow_bounds(schema: Schema, path: Path) -> None:
    """Moves large bounds of an integer inwards, to integers that the library reads exactly.

    It reads bounds as 64-bit floats and converts them to 64-bit integers; beyond 64 bits the
    range ends at theirs.
    """
    given = [f"{key} {_shown(schema[key])}" for key in _BOUNDS if key in schema]
    least = _inside(schema, path, "minimum", "exclusiveMinimum", math.inf)
    most = _inside(schema, path, "maximum", "exclusiveMaximum", -math.inf)
    # Without the other bound, the library accepts at most 18 digits.
    if least is not None and most is None and least >= 10**18:
        most = schema["maximum"] = _MAX_INT64
    if most is not None and least is None and most <= -(10**18):
        least = schema["minimum"] = _MIN_EXACT
    if least is not None and most is not None and least > most:
        large = max(abs(least), abs(most)) > 2**53
        exact = " that a 64-bit float represents exactly" if large else ""
        raise SchemaError(path, f"must allow an integer{exact}, given {' and '.join(given)}")


def _inside(schema: Schema, path: Path, name: str, exclusive: str, towards: float) -> int | None:
    """Replaces an inclusive and an exclusive large bound; returns the bound, None without one."""
    bounds: list[int] = []
    step = 1 if towards > 0 else -1
    for key, offset in ((name, 0), (exclusive, step)):
        value = schema.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            continue
        if math.isinf(value):
            raise SchemaError((*path, key), "must be finite")
        whole = math.ceil(value) if towards > 0 else math.floor(value)
        bounds.append(whole + offset if whole == value else whole)
    if not bounds:
        return None
    bound = max(bounds) if towards > 0 else min(bounds)
    if abs(bound) > 2**53:
        schema.pop(exclusive, None)
        bound = schema[name] = _exact(bound, towards, (*path, name))
    return bound


def _exact(bound: int, towards: float, path: Path) -> int:
    """The nearest integer inside a bound that the library reads exactly."""
    if towards > 0 and bound < _MIN_EXACT:
        return _MIN_EXACT
    if towards < 0 and bound >= _MAX_INT64:
        return _MAX_INT64
    if not _MIN_EXACT <= bound <= _MAX_INT64:
        raise SchemaError(path, f"must leave integers of 64 bits, given {_shown(bound)}")
    number = float(bound)
    if (int(number) - bound) * towards < 0:
        number = math.nextafter(number, towards)
    return min(int(number), _MAX_INT64)


def _shown(value: Any) -> str:
    long = isinstance(value, int) and abs(value) >= 10**30
    return "an integer of more than 30 digits" if long else str(value)
