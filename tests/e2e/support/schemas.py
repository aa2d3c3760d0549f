"""JSON schemas as clients may send them: deep, large, with every keyword, and often wrong."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

FORMATS = (
    "date date-time time duration email hostname ipv4 ipv6 uri uuid binary password path regex "
    "uri-reference idn-email json-pointer int32 int64 float byte decimal color unknown"
).split()
PATTERNS = (
    "^[a-z]+$",
    r"^\d{3}-\d{4}$",
    "(a|b)*c{2,40}",
    "^(?=.*x).+$",
    r"(a)\1",
    "(",
    "[",
    ".{0,400}",
    "(.*a){12}",
    "^(a{1,60}b{1,60}){1,60}$",
    r"\p{L}+",
)
NUMBERS = (0, 1, -1, 7, 0.1, 1e-9, 1e300, 2**31, 2**53 + 1, 2**63 - 1, -(2**63), 2**64, 10**40)
NAMES = ("name", "items", "type", "$ref", "a b", "ünïcode", 'quo"te', "", "x-a", "n")
ODD_VALUES = (None, True, [], {}, "x", -1, 1.5, [1, "a"], {"type": "string"})


def generated_schema(rng: random.Random) -> dict[str, Any]:
    """A random schema; one in eight is very deep or very large."""
    match rng.randrange(24):
        case 0:
            return _deep(rng, rng.choice((30, 60, 119, 125, 400)))
        case 1:
            return _large(rng, rng.choice((50, 300, 2000)))
        case 2:
            return {"enum": [f"value {rng.random()}" for _ in range(rng.choice((10, 1000)))]}
    schema = _schema(rng, rng.randint(0, 4))
    if rng.random() < 0.3:
        schema["$defs"] = {name: _schema(rng, 1) for name in ("a", "b")}
    return schema


def _deep(rng: random.Random, depth: int) -> dict[str, Any]:
    wrap: tuple[Callable[[Any], dict[str, Any]], ...] = (
        lambda inner: {"type": "object", "properties": {"a": inner}, "required": ["a"]},
        lambda inner: {"type": "array", "items": inner},
        lambda inner: {"anyOf": [inner, {"type": "null"}]},
        lambda inner: {"allOf": [inner]},
    )
    schema = _schema(rng, 0)
    for _ in range(depth):
        schema = rng.choice(wrap)(schema)
    return schema


def _large(rng: random.Random, number: int) -> dict[str, Any]:
    properties = {f"property_{n}": _schema(rng, 0) for n in range(number)}
    required = rng.sample(sorted(properties), rng.choice((0, number // 2, number)))
    return {"type": "object", "properties": properties, "required": required}


def _schema(rng: random.Random, depth: int) -> dict[str, Any]:
    kinds = [_number, _string, _constant, _any]
    if depth:
        kinds += [_object, _object, _array, _combination, _reference]
    schema = rng.choice(kinds)(rng, depth)
    if rng.random() < 0.08:
        keyword = rng.choice((*schema, "uniqueItems", "not", "if", "unevaluatedProperties"))
        schema[keyword] = rng.choice(ODD_VALUES)
    if rng.random() < 0.2:
        schema |= {"title": "A title", "description": "Text", "default": 1, "x-extension": {}}
    return schema


def _some(rng: random.Random, options: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    return {key: make() for key, make in options.items() if rng.random() < 0.4}


def _number(rng: random.Random, depth: int) -> dict[str, Any]:
    def number() -> float:
        return rng.choice((*NUMBERS, rng.randint(-1000, 1000)))

    bounds = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
    values = _some(rng, dict.fromkeys(rng.sample(bounds, 2), number))
    if rng.random() < 0.1:
        values["multipleOf"] = rng.choice((7, 1000, 99991, 999983))
    return {"type": rng.choice(("integer", "number")), **values}


def _string(rng: random.Random, depth: int) -> dict[str, Any]:
    return {
        "type": rng.choice(("string", ["string", "null"])),
        **_some(
            rng,
            {
                "minLength": lambda: rng.choice((0, 1, 50, 3000)),
                "maxLength": lambda: rng.choice((0, 5, 5000, 10**6)),
            },
        ),
        **rng.choice(({}, {"format": rng.choice(FORMATS)}, {"pattern": rng.choice(PATTERNS)})),
    }


def _constant(rng: random.Random, depth: int) -> dict[str, Any]:
    value = rng.choice((*ODD_VALUES, *NUMBERS))
    return {"const": value} if rng.random() < 0.5 else {"enum": [value, "b", None]}


def _any(rng: random.Random, depth: int) -> dict[str, Any]:
    return rng.choice(({}, {"type": "null"}, {"type": "boolean"}, {"type": "object"}))


def _object(rng: random.Random, depth: int) -> dict[str, Any]:
    names = rng.sample(NAMES, rng.randint(0, 5))
    return {
        "type": "object",
        "properties": {name: _schema(rng, depth - 1) for name in names},
        **_some(
            rng,
            {
                "required": lambda: rng.sample(NAMES, rng.randint(0, 2)),
                "additionalProperties": lambda: rng.choice((True, False, _schema(rng, 0))),
                "patternProperties": lambda: {rng.choice(PATTERNS): _schema(rng, 0)},
                "minProperties": lambda: rng.randint(0, 3),
                "maxProperties": lambda: rng.randint(0, 9),
            },
        ),
    }


def _array(rng: random.Random, depth: int) -> dict[str, Any]:
    return {
        "type": "array",
        **_some(
            rng,
            {
                "items": lambda: _schema(rng, depth - 1),
                "prefixItems": lambda: [_schema(rng, depth - 1) for _ in range(2)],
                "minItems": lambda: rng.choice((0, 1, 200, 10**6)),
                "maxItems": lambda: rng.choice((0, 3, 1000, 10**9)),
                "uniqueItems": lambda: False,
            },
        ),
    }


def _combination(rng: random.Random, depth: int) -> dict[str, Any]:
    keyword = rng.choice(("anyOf", "oneOf", "allOf"))
    return {keyword: [_schema(rng, depth - 1) for _ in range(rng.randint(0, 3))]}


def _reference(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"$ref": rng.choice(("#", "#/$defs/a", "#/$defs/b", "#/nowhere", "http://example.com"))}
