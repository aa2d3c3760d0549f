"""Finds the unknown fields of a request, which are ignored and reported in a header."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import islice

from pydantic import BaseModel

MAX_NAMES = 20
MAX_NAME_CHARACTERS = 60


def ignored_fields(given: Mapping[str, object], model: BaseModel) -> list[str]:
    """Paths in `given` that `model`, which was parsed from it, does not have; at most 21."""
    return list(islice(_ignored(given, model, ""), MAX_NAMES + 1))


def ignored_header(names: Sequence[str]) -> str:
    """The header's value: at most 20 names, comma-separated, ASCII; "..." if there are more."""
    shown = [_escaped(name) for name in names[:MAX_NAMES]]
    return ", ".join([*shown, *(["..."] if len(names) > MAX_NAMES else [])])


def _ignored(given: Mapping[str, object], model: BaseModel, prefix: str) -> Iterator[str]:
    known = _known(type(model))
    for key, value in given.items():
        path = f"{prefix}{key}"
        if key not in known:
            yield path
            continue
        made = getattr(model, known[key])
        if isinstance(value, dict) and isinstance(made, BaseModel):
            yield from _ignored(value, made, f"{path}.")
        elif isinstance(value, list) and isinstance(made, list):
            for number, (item, part) in enumerate(zip(value, made, strict=False)):
                if isinstance(item, dict) and isinstance(part, BaseModel):
                    yield from _ignored(item, part, f"{path}[{number}].")


@cache
def _known(model: type[BaseModel]) -> Mapping[str, str]:
    """The field names of a model by the names that clients use."""
    return {info.alias or name: name for name, info in model.model_fields.items()}


def _escaped(name: str) -> str:
    """Escape a name for a header: clients may use line ends and commas."""
    text = name[:MAX_NAME_CHARACTERS].encode("ascii", "backslashreplace").decode()
    return "".join(c if c.isprintable() and c != "," else "?" for c in text)
