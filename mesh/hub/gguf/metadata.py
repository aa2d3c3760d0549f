"""Reads the metadata of a GGUF file, all parts of a split one included.

The `gguf` package reads it too, but needs numpy, which would add a third to the tokenizer's image,
and several seconds for a large vocabulary.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_MAX_DIMENSIONS = 4
_STRING, _ARRAY = 8, 9
_NUMBERS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
"""Formats of `struct` by the types of metadata values."""

_TENSOR_TYPES = {0: "F32", 1: "F16"}
"""Names of the types of tensors that the configuration depends on."""


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


class Metadata:
    """The metadata of a model and the shapes of its tensors, by GGUF name."""

    def __init__(self, path: Path) -> None:
        """Reads the headers of all parts. Raises GgufError."""
        self.path = path
        self.values: Mapping[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.types: dict[str, str] = {}
        self._places: dict[str, tuple[Path, int]] = {}
        for number, part in enumerate(parts(path)):
            values = self._read(part)
            if number == 0:
                self.values = values

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

    def floats(self, name: str) -> tuple[float, ...]:
        """The values of a one-dimensional float32 tensor. Raises GgufError for another one."""
        shape, kind = self.shapes[name], self.types[name]
        if len(shape) != 1 or kind != "F32":
            raise GgufError(f"{self.path}: tensor {name} must be a vector of float32")
        part, offset = self._places[name]
        with part.open("rb") as file:
            file.seek(offset)
            try:
                return struct.unpack(f"<{shape[0]}f", file.read(4 * shape[0]))
            except struct.error as error:
                raise GgufError(f"{part} is not a valid GGUF file: {error}") from error

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as m:
                header = _Header(m)
                values, tensors = header.read()
        except (ValueError, OSError, struct.error) as error:
            raise GgufError(f"{path} is not a valid GGUF file: {error}") from error
        for name, shape, kind, offset in tensors:
            self.shapes[name], self.types[name] = shape, _TENSOR_TYPES.get(kind, str(kind))
            self._places[name] = path, header.data_offset + offset
        return values


class _Header:
    """A reader of the header. Raises ValueError or struct.error if it is not valid."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self._at = 0
        self.data_offset = 0
        """Where the tensors begin, after `read`."""

    def read(self) -> tuple[dict[str, Any], list[tuple[str, tuple[int, ...], int, int]]]:
        """The values by key, and name, shape, type and offset of each tensor."""
        if self._bytes(4) != _MAGIC:
            raise ValueError("it does not begin with GGUF")
        (version,) = self._numbers("I", 1)
        if version not in _VERSIONS:
            raise ValueError(f"its version must be one of {_VERSIONS}, is {version}")
        num_tensors, num_values = self._numbers("Q", 2)
        values = {}
        for _ in range(num_values):
            key = self._string()
            values[key] = self._value(*self._numbers("I", 1))
        tensors = [self._tensor() for _ in range(num_tensors)]
        alignment = int(values.get("general.alignment", _DEFAULT_ALIGNMENT)) or 1
        self.data_offset = -(-self._at // alignment) * alignment
        return values, tensors

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        (num_dimensions,) = self._numbers("I", 1)
        if num_dimensions > _MAX_DIMENSIONS:
            raise ValueError(f"tensor {name:.80} has {num_dimensions} dimensions")
        # GGUF lists the fastest dimension first.
        shape = tuple(reversed(self._numbers("Q", num_dimensions)))
        (kind,), (offset,) = self._numbers("I", 1), self._numbers("Q", 1)
        return name, shape, kind, offset

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._numbers(_format(kind), 1)[0]
        (of,), (count,) = self._numbers("I", 1), self._numbers("Q", 1)
        if of == _STRING:
            return [self._string() for _ in range(count)]
        return list(self._numbers(_format(of), count))

    def _string(self) -> str:
        return self._bytes(*self._numbers("Q", 1)).decode()

    def _numbers(self, kind: str, count: int) -> tuple[Any, ...]:
        size = count * struct.calcsize(f"<{kind}")
        return struct.unpack(f"<{count}{kind}", self._bytes(size))

    def _bytes(self, size: int) -> bytes:
        begin, end = self._at, self._at + size
        if end > len(self._content):
            raise ValueError(f"it ends at byte {len(self._content)}, within its header")
        self._at = end
        return self._content[begin:end]


def _format(kind: int) -> str:
    if kind not in _NUMBERS:
        raise ValueError(f"a value has the unknown type {kind}")
    return _NUMBERS[kind]
