"""The text of `--help`: types and defaults as they are written on the command line."""

from __future__ import annotations

from argparse import Action, ArgumentParser
from collections.abc import Callable
from enum import Enum
from typing import Literal, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo

_TYPES = {str: "TEXT", SecretStr: "TEXT", int: "INTEGER", float: "FLOAT"}


def describe_flags(parser: ArgumentParser, field_of: Callable[[str], FieldInfo | None]) -> None:
    """Rewrite types and defaults of flags; `field_of` returns the field of an action's `dest`."""
    for action in parser._actions:
        field = field_of(action.dest)
        if field is not None:
            _describe(action, field)


def _describe(action: Action, field: FieldInfo) -> None:
    if action.nargs != 0:  # a boolean flag has no value
        action.metavar = value_type(field)
    if not field.is_required():
        default = field.default
        secret = isinstance(default, SecretStr)
        shown = "" if default in ("", None) or secret else f" (default: {_written(default)})"
        action.help = f"{field.description or ''}{shown}".replace("%", "%%")


def value_type(field: FieldInfo) -> str:
    """How a value of the field is written, such as `HOST:PORT`, `INTEGER` or `{auto,cpu}`."""
    if any(isinstance(each, str) for each in field.metadata):
        return next(each for each in field.metadata if isinstance(each, str))
    if isinstance(field.annotation, type) and issubclass(field.annotation, Enum):
        return "{" + ",".join(str(each.value) for each in field.annotation) + "}"
    if get_origin(field.annotation) is Literal:
        return "{" + ",".join(str(each) for each in get_args(field.annotation) if each) + "}"
    types = [each for each in (*get_args(field.annotation), field.annotation) if each in _TYPES]
    return _TYPES[types[0]] if types else "VALUE"


def _written(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
