"""Reads a model's weights from safetensors files, sharded or not. Pickles are never loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from inference.engine.errors import ModelLoadError

FILE_PATTERNS = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "*_config.json",
    "tokenizer.json",
)
"""The files of a hub repository that the engine needs; no code and no pickles."""

_BUFFER_SUFFIXES = (".rotary_emb.inv_freq",)
"""Buffers that old checkpoints store; the engine computes them from the config."""


class Weights:
    """The tensors of a checkpoint by name, read on demand."""

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
        """Reads a tensor. Raises ModelLoadError if it is missing or has another shape."""
        path = self._file_of.get(name)
        if path is None:
            raise ModelLoadError(f"{self._folder}: tensor {name} is missing")
        with safe_open(path, framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        if tuple(tensor.shape) != shape:
            raise ModelLoadError(
                f"{path}: tensor {name} must have shape {list(shape)}, has {list(tensor.shape)}"
            )
        self._used.add(name)
        return tensor

    def skip(self, name: str) -> None:
        """Counts a redundant tensor as used, whether the checkpoint has it or not."""
        self._used.add(name)

    @property
    def unused(self) -> list[str]:
        """Names of tensors that were neither taken nor skipped, except for known buffers.

        If there are any after loading, the checkpoint probably has another architecture.
        """
        left = self._file_of.keys() - self._used
        return sorted(name for name in left if not name.endswith(_BUFFER_SUFFIXES))


def _files(folder: Path) -> Iterator[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = set(json.loads(index.read_text())["weight_map"].values())
        except (ValueError, KeyError, AttributeError) as error:
            raise ModelLoadError(f"{index} has no weight_map") from error
        for name in sorted(names):
            if not (folder / name).is_file():
                raise ModelLoadError(f"{folder / name} is missing; {index.name} lists it")
            yield folder / name
        return
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        raise ModelLoadError(f"{folder}: no *.safetensors file; other formats are not supported")
    yield from found
