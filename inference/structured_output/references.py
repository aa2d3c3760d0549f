"""References inside a JSON schema: where they lead, and those that lead to themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import unquote

from inference.structured_output.schema_error import Path, Schema, SchemaError

BRANCHES = ("allOf", "anyOf", "oneOf", "if", "then", "else")
"""Keywords whose schemas describe the same value as the schema that has them."""


def references(schema: Any, branches: Sequence[str] = BRANCHES) -> Iterator[Path]:
    """Where the references lead that describe the same value as the schema."""
    if not isinstance(schema, dict):
        return
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        parts = unquote(reference).removeprefix("#").split("/")[1:]
        yield tuple(part.replace("~1", "/").replace("~0", "~") for part in parts)
    for key in branches:
        members = schema.get(key)
        for member in members if isinstance(members, list) else [members]:
            yield from references(member, branches)


def resolve(schema: Any, place: Path) -> Any:
    for part in place:
        if isinstance(schema, list) and str(part).isdecimal() and int(part) < len(schema):
            schema = schema[int(part)]
        elif isinstance(schema, dict):
            schema = schema.get(part)
        else:
            return None
    return schema


def check_references(root: Schema) -> None:
    """Raises SchemaError for a reference that leads to itself, so that it describes nothing.

    Linear in time: each place is followed once.
    """
    is_done: dict[Path, bool] = {}
    for start in _places(root):
        if start in is_done:
            continue
        is_done[start] = False
        trail = [(start, references(resolve(root, start), _ALL))]
        while trail:
            place, following = trail[-1]
            target = next(following, None)
            if target is None:
                is_done[place] = True
                trail.pop()
            elif target not in is_done:
                is_done[target] = False
                trail.append((target, references(resolve(root, target), _ALL)))
            elif not is_done[target]:
                raise SchemaError((*place, "$ref"), _CIRCULAR)


_ALL = ("allOf",)
"""Keywords whose branches must all hold: a reference in one cannot be avoided by another."""

_CIRCULAR = "must not lead back to its own schema: it describes no value then"


def _places(root: Schema) -> Iterator[Path]:
    """The places of schemas with a reference, as JSON pointers have them."""
    pending: list[tuple[Any, Path]] = [(root, ())]
    while pending:
        value, place = pending.pop()
        if isinstance(value, dict):
            if "$ref" in value or "allOf" in value:
                yield place
            members = list(value.items())
        else:
            members = list(enumerate(value))
        pending += [
            (each, (*place, str(key))) for key, each in members if isinstance(each, dict | list)
        ]
