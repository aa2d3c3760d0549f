"""The operations of a step in which some sequences use LoRA adapters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from inference.kv_cache.kv_cache import KVCache
from inference.model.layers.linear import Linear
from inference.model.layers.operations import Attention, Operations
from inference.model.layers.quantise import Quantised
from inference.runner.step import Step
from inference.runner.step_inputs import StepInputs

if TYPE_CHECKING:
    from inference.model.lora.adapted import Adapter


class AdaptedRows(NamedTuple):
    """The rows of a step that use one adapter."""

    adapter: Adapter
    rows: Tensor
    """[num_rows] int64"""


def adapted_rows(step: Step, device: torch.device) -> list[AdaptedRows]:
    """The rows of each adapter of a step."""
    rows: dict[int, list[int]] = {}
    adapters = {}
    for sequence, adapter in enumerate(step.adapters):
        if adapter is not None:
            adapters[id(adapter)] = adapter
            own = range(step.begins[sequence], step.begins[sequence + 1])
            rows.setdefault(id(adapter), []).extend(own)
    return [
        AdaptedRows(adapter, torch.tensor(rows[key], device=device))
        for key, adapter in adapters.items()
    ]


class LoraOperations(Operations):
    """Adds the adapters' products to those of the matrices; everything else is the model's."""

    def __init__(self, operations: Operations, adapted: Sequence[AdaptedRows]) -> None:
        self._operations = operations
        self._adapted = adapted

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return self._operations.norm(x, weight)

    def add_norm(self, x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return self._operations.add_norm(x, residual, weight)

    def gate(self, gate_up: Tensor) -> Tensor:
        return self._operations.gate(gate_up)

    def quantise(self, x: Tensor) -> Quantised:
        return self._operations.quantise(x)

    def attention(self, inputs: StepInputs, cache: KVCache) -> Attention:
        return self._operations.attention(inputs, cache)

    def multiply(self, x: Tensor, matrix: Linear) -> Tensor:
        product = self._operations.multiply(x, matrix)
        for adapter, rows in self._adapted:
            delta = adapter.deltas.get(matrix)
            if delta is not None:
                added = F.linear(F.linear(x[rows], delta.down), delta.up)
                product.index_add_(0, rows, added.to(product.dtype))
        return product
