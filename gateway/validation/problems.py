"""Turns pydantic's errors into messages that name the field, the limit and the given value."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from gateway.validation.field_error import FieldError
from mesh.errors import MeshError, invalid

MAX_GIVEN_CHARACTERS = 80
"""Characters of a bad value that an error message quotes."""

Context: TypeAlias = Mapping[str, Any]

_LIMITS: Mapping[str, Callable[[Context], str]] = {
    "greater_than_equal": lambda c: f"must be at least {_number(c['ge'])}",
    "greater_than": lambda c: f"must be more than {_number(c['gt'])}",
    "less_than_equal": lambda c: f"must be at most {_number(c['le'])}",
    "less_than": lambda c: f"must be less than {_number(c['lt'])}",
    "string_too_short": lambda c: f"must have at least {_count(c['min_length'], 'character')}",
    "string_too_long": lambda c: f"must have at most {_count(c['max_length'], 'character')}",
    "too_short": lambda c: f"must have at least {_count(c['min_length'], 'item')}",
    "too_long": lambda c: f"must have at most {_count(c['max_length'], 'item')}",
    "literal_error": lambda c: f"must be {c['expected']}",
    "finite_number": lambda c: "must be a finite number",
}
_LENGTHS = ("string_too_short", "string_too_long", "too_short", "too_long")
_TYPES = {
    "string": "a string",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list": "an array",
    "tuple": "an array",
    "dict": "an object",
    "model": "an object",
}


def problem_of(error: ValidationError) -> MeshError:
    """The first problem, as MeshError (INVALID_REQUEST)."""
    return problems_of(error)[0]


def problems_of(error: ValidationError) -> list[MeshError]:
    """Every problem, as MeshError (INVALID_REQUEST)."""
    return [_problem(problem) for problem in error.errors(include_url=False)]


def _problem(problem: ErrorDetails) -> MeshError:
    found = _field_error(problem)
    field = field_path(found.path)
    return invalid(field, f"{field} {found.requirement}")


def field_error_of(error: ValidationError) -> FieldError:
    """The first problem of a part of a body, for the validator of the whole."""
    return _field_error(error.errors(include_url=False)[0])


def _field_error(problem: ErrorDetails) -> FieldError:
    kind, given, location = problem["type"], problem["input"], problem["loc"]
    if kind == "missing":
        return FieldError("is required", *location)
    if kind == "value_error" and isinstance(error := problem["ctx"]["error"], FieldError):
        return FieldError(error.requirement, *location, *error.path)
    limit = _LIMITS.get(kind)
    if limit is not None:
        text = limit(problem.get("ctx", {}))
    elif kind.partition("_")[0] in _TYPES:
        text = f"must be {_TYPES[kind.partition('_')[0]]}"
    else:
        text = f"is not valid ({problem['msg']})"
    return FieldError(f"{text}, given {_given(kind, given)}", *location)


def field_path(location: Sequence[int | str]) -> str:
    """Format a location as `messages[0].content`."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part}" if path else part
    return path


def given_value(value: object) -> str:
    """Format a bad value as JSON, truncated."""
    if isinstance(value, list | dict):
        return json_kind(value)
    text = json.dumps(value, ensure_ascii=False, default=repr)
    if len(text) > MAX_GIVEN_CHARACTERS:
        return f"{text[:MAX_GIVEN_CHARACTERS]}…"
    return text


def json_kind(value: object) -> str:
    """The JSON type of a value, with its article."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "an array" if isinstance(value, list | tuple) else "an object"


def path_of_surrogate(value: object) -> str | None:
    """The path of a string with a lone surrogate, which is not valid Unicode; None if none has."""
    waiting: list[tuple[str, object]] = [("", value)]
    while waiting:
        path, each = waiting.pop()
        if isinstance(each, str):
            if not _is_unicode(each):
                return path or "body"
        elif isinstance(each, list):
            waiting.extend((f"{path}[{n}]", item) for n, item in enumerate(each))
        elif isinstance(each, dict):
            for key, item in each.items():
                name = key if _is_unicode(key) else "?"
                inner = f"{path}.{name}" if path else name
                waiting.append((inner, item if _is_unicode(key) else key))
    return None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _given(kind: str, value: Any) -> str:
    if kind not in _LENGTHS:
        return given_value(value)
    # Lengths are counted after trimming, where a field is trimmed.
    return str(len(value.strip() if isinstance(value, str) else value))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:g}"
