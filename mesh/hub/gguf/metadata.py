"""Reads the metadata of a GGUF file, all parts of a split one included."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gguf import GGUFReader

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")


class GgufError(Exception):
    """The file is not valid GGUF, or has a model that is not supported; the message says why."""


def parts(path: Path) -> list[Path]:
    """All files of the model: `NAME-00001-of-00003.gguf` is the first of three.

    Raises GgufError if one is missing.
    """
    match = _PART.match(path.name)
    if match is None:
        return [path]
    stem, count = match["stem"], int(match["count"])
    found = [path.with_name(f"{stem}-{n:05}-of-{count:05}.gguf") for n in range(1, count + 1)]
    for each in found:
        if not each.is_file():
            raise GgufError(f"{each} is missing; the model has {count} parts")
    return found


def open_reader(path: Path) -> GGUFReader:
    """Opens a file; its tensors are mapped into memory. Raises GgufError if it is not GGUF."""
    # Imported here: only services that load a GGUF file need the package.
    from gguf import GGUFReader

    try:
        return GGUFReader(path)
    except (ValueError, OSError, IndexError, OverflowError, UnicodeDecodeError) as error:
        raise GgufError(f"{path} is not a valid GGUF file: {error}") from error


class Metadata:
    """The metadata of a model and the shapes of its tensors, by GGUF name."""

    def __init__(self, path: Path) -> None:
        """Reads the headers of all parts. Raises GgufError."""
        first, *others = (open_reader(each) for each in parts(path))
        self.path = path
        self.values: Mapping[str, Any] = {
            name: field.contents() for name, field in first.fields.items()
        }
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.types: dict[str, str] = {}
        for reader in (first, *others):
            for tensor in reader.tensors:
                # GGUF lists the fastest dimension first.
                self.shapes[tensor.name] = tuple(int(size) for size in reversed(tensor.shape))
                self.types[tensor.name] = tensor.tensor_type.name

    @property
    def architecture(self) -> str:
        """As llama.cpp names it, such as "qwen2"; the prefix of the model's own keys."""
        return str(self.values.get("general.architecture", ""))

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key of the architecture, such as "block_count"."""
        return self.values.get(f"{self.architecture}.{key}", default)

    def require(self, key: str) -> Any:
        """The value of a key of the architecture. Raises GgufError if there is none."""
        value = self.get(key)
        if value is None:
            raise GgufError(f"{self.path}: metadata {self.architecture}.{key} is missing")
        return value
