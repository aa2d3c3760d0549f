"""The error of a JSON schema that cannot be enforced, and the place in it."""

from __future__ import annotations

from typing import Any, TypeAlias

Schema: TypeAlias = "dict[str, Any]"
Path: TypeAlias = "tuple[str | int, ...]"


class SchemaError(ValueError):
    """A schema that cannot be enforced; `path` leads from its root to the keyword."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(problem)
        self.path = path
        self.problem = problem


def path_text(path: Path) -> str:
    """A path as in `properties.email.pattern` or `anyOf[1].type`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")
