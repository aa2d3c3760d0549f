"""Reads a model's weights from safetensors files, sharded or not. Pickles are never loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from inference.engine.errors import ModelLoadError
from inference.model.config_files import read_json
from inference.model.layers.grouped import Bits, GroupedWeight
from mesh.hub.repository import unserved_weights

_FILE_NAME = re.compile(r"[^/\\\0]+\.safetensors")
"""No path: the index of a model must not name files outside its folder."""

SAMPLED_ROWS = 4
"""Rows of a matrix that its sample contains."""

_WEIGHT_TYPES = ("F64", "F32", "F16", "BF16")
"""Types of the format that are weights as they are; eight-bit ones need scales."""

_BUFFER_SUFFIXES = (".rotary_emb.inv_freq",)
"""Buffers that old checkpoints store; the engine computes them from the config."""


class SafetensorsWeights:
    """The tensors of a folder's safetensors files, read on demand; see `Weights`."""

    def __init__(self, folder: Path) -> None:
        """Finds the files. Raises ModelLoadError if there are none."""
        self._folder = folder
        self._file_of: dict[str, Path] = {}
        self._used: set[str] = set()
        for path in _files(folder):
            try:
                with safe_open(path, framework="pt") as file:
                    self._file_of.update(dict.fromkeys(file.keys(), path))
            except (SafetensorError, OSError) as error:
                raise ModelLoadError(f"{path} is not a safetensors file: {error}") from error

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def take(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Reads a tensor. Raises ModelLoadError if it is missing or has another shape or type."""
        path = self._file_of.get(name)
        if path is None:
            raise ModelLoadError(f"{self._folder}: tensor {name} is missing")
        with safe_open(path, framework="pt") as file:
            # Before it is read, as a wrong tensor can be of any size.
            stored = file.get_slice(name)
            if tuple(stored.get_shape()) != shape:
                raise ModelLoadError(
                    f"{path}: tensor {name} must have shape {list(shape)}, has {stored.get_shape()}"
                )
            if stored.get_dtype() not in _WEIGHT_TYPES:
                raise ModelLoadError(
                    f"{path}: tensor {name} must have one of the types "
                    f"{', '.join(_WEIGHT_TYPES)}, has {stored.get_dtype()}"
                )
            tensor: torch.Tensor = file.get_tensor(name)
        self._used.add(name)
        return tensor

    def take_grouped(self, name: str, shape: tuple[int, ...]) -> GroupedWeight | None:
        """None: these files have no groups of integers without a `quantization_config`."""
        return None

    @property
    def stored_bits(self) -> Bits | None:
        """None, as well."""
        return None

    def take_stored(self, name: str) -> torch.Tensor:
        """Reads a tensor of any type and shape. Raises ModelLoadError if it is missing."""
        path = self._file_of.get(name)
        if path is None:
            raise ModelLoadError(f"{self._folder}: tensor {name} is missing")
        self._used.add(name)
        with safe_open(path, framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor

    def skip(self, name: str) -> None:
        """Counts a redundant tensor as used, whether the checkpoint has it or not."""
        self._used.add(name)

    def skip_all(self, prefix: str) -> None:
        """Counts all tensors whose names begin so as used."""
        self._used.update(name for name in self._file_of if name.startswith(prefix))

    def samples(self) -> Iterator[bytes]:
        """Of each tensor: name, type, shape, and evenly spaced rows."""
        with ExitStack() as stack:
            files = {
                path: stack.enter_context(safe_open(path, framework="pt"))
                for path in set(self._file_of.values())
            }
            for name in sorted(self._file_of):
                tensor = files[self._file_of[name]].get_slice(name)
                shape = tensor.get_shape()
                yield f"{name}\0{tensor.get_dtype()}\0{shape}\0".encode()
                for rows in sampled_rows(shape):
                    yield tensor[rows].contiguous().view(torch.uint8).numpy().tobytes()

    @property
    def unused(self) -> list[str]:
        """Names of tensors that were neither taken nor skipped, except for known buffers."""
        left = self._file_of.keys() - self._used
        return sorted(name for name in left if not name.endswith(_BUFFER_SUFFIXES))


def sampled_rows(shape: Sequence[int]) -> list[slice]:
    """The rows in a tensor's sample: the first, the last, and some between; all of a vector."""
    if not shape or 0 in shape:
        return []
    if len(shape) == 1:
        return [slice(0, shape[0])]
    last = shape[0] - 1
    rows = sorted({last * number // (SAMPLED_ROWS - 1) for number in range(SAMPLED_ROWS)})
    return [slice(row, row + 1) for row in rows]


def _files(folder: Path) -> Iterator[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        for name in _indexed_files(index):
            if not (folder / name).is_file():
                raise ModelLoadError(f"{folder / name} is missing; {index.name} lists it")
            yield folder / name
        return
    whole = folder / "model.safetensors"
    if whole.is_file():
        yield whole  # files beside it are further copies, such as in float16
        return
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        problem = unserved_weights(sorted(path.name for path in folder.iterdir()))
        raise ModelLoadError(
            f"{folder}: no *.safetensors or *.gguf file"
            + (f"; it {problem}" if problem else "; other formats are not supported")
        )
    yield from found


def _indexed_files(index: Path) -> list[str]:
    """Names of the files in an index, sorted. Raises ModelLoadError for one outside the folder."""
    weight_map = read_json(index, required=True).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelLoadError(f"{index}: weight_map must be an object with file names by tensor")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not _FILE_NAME.fullmatch(name):
            raise ModelLoadError(
                f"{index}: weight_map.{tensor} must be the name of a .safetensors file in the same "
                f"folder. Given: {name!r:.80}"
            )
    return sorted(set(weight_map.values()))
