"""The interface of a checkpoint's tensors, and the choice of its reader."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch

from inference.model.config_files import read_json
from inference.model.layers.grouped import Bits, GroupedWeight
from inference.model.weights.quantised_weights import expanded
from inference.model.weights.safetensors_weights import SafetensorsWeights


class Weights(Protocol):
    """The tensors of a checkpoint by transformers' names, read on demand."""

    def __contains__(self, name: str) -> bool: ...

    def take(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Reads a tensor. Raises ModelLoadError if it is missing or has another shape or type."""
        ...

    def take_grouped(self, name: str, shape: tuple[int, ...]) -> GroupedWeight | None:
        """Reads a matrix of integers as it is stored, such that the native kernels multiply it.

        None if it is stored in another form; `take` expands any. Raises like `take`.
        """
        ...

    def skip(self, name: str) -> None:
        """Counts a redundant tensor as used, whether the checkpoint has it or not."""
        ...

    def skip_all(self, prefix: str) -> None:
        """Counts all tensors whose names begin so as used: those of another modality."""
        ...

    def samples(self) -> Iterator[bytes]:
        """Of each tensor, sorted by name: name, type, shape, and evenly spaced rows; reads them.

        The samples recognise another checkpoint, another revision or a merged adapter for the
        price of some megabytes. They do not recognise a forgery.
        """
        ...

    @property
    def stored_bits(self) -> Bits | None:
        """4 if most weights are integers of four bits in groups, else 8 if most are quantised so
        that eight bits represent them; None of other checkpoints.
        """
        ...

    @property
    def unused(self) -> list[str]:
        """Names of tensors that were neither taken nor skipped, except for known buffers.

        If there are any after loading, the checkpoint probably has another architecture.
        """
        ...


def open_weights(folder: Path) -> Weights:
    """Finds the files of a model. Raises ModelLoadError if there are none or they are invalid."""
    gguf = sorted(folder.glob("*.gguf"))
    if gguf and not any(folder.glob("*.safetensors")):
        # Imported here: other models do not need the package.
        from inference.model.weights.gguf_weights import GgufWeights

        return GgufWeights(gguf)
    weights = SafetensorsWeights(folder)
    path = folder / "config.json"
    method = read_json(path, required=False).get("quantization_config")
    return weights if method is None else expanded(weights, method, path)
