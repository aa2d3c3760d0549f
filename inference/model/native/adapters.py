"""LoRA adapters in the form that the native decoder adds to its products."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

import torch.nn.functional as F
from torch import Tensor

from inference.model.lora.adapted import AdaptedLayer, Adapter
from inference.model.native.packing import gated_order

if TYPE_CHECKING:
    from _ctypes import Array

    PointerArray = Array[ctypes.c_void_p]


class _LowRank(ctypes.Structure):
    """The struct `LowRank` of lora.h."""

    _fields_ = [("down", ctypes.c_void_p), ("up", ctypes.c_void_p), ("rank", ctypes.c_int32)]


class StepAdapters(NamedTuple):
    """The adapters of a step's sequences."""

    array: PointerArray
    """[num_sequences] the first matrix of each one's adapter; None without."""
    rank: int
    """The highest rank of a matrix."""


class _Packed:
    """One adapter: a struct for each matrix of the model, and the tensors that they point to."""

    def __init__(
        self, adapter: Adapter, layers: Sequence[AdaptedLayer], num_outputs: list[int], lanes: int
    ) -> None:
        self._kept_alive: list[Tensor] = []
        matrices = []
        self.rank = 0
        for layer in layers:
            for place, key in enumerate(layer):
                delta = adapter.deltas.get(key)
                if delta is None:
                    matrices.append(_LowRank(None, None, 0))
                    continue
                up = delta.up.float()
                if AdaptedLayer._fields[place] == "gate_up":
                    up = up[gated_order(len(up), lanes)]
                padding = num_outputs[place] - len(up)
                up = F.pad(up, (0, 0, 0, padding)).t().contiguous()
                down = delta.down.float().contiguous()
                self._kept_alive += [up, down]
                matrices.append(_LowRank(down.data_ptr(), up.data_ptr(), len(down)))
                self.rank = max(self.rank, len(down))
        self.matrices = (_LowRank * len(matrices))(*matrices)


class NativeAdapters:
    """Packs adapters when they are first used, and forgets them with the adapter."""

    def __init__(self, layers: Sequence[AdaptedLayer], num_outputs: list[int], lanes: int) -> None:
        """`num_outputs`: of the four matrices of each layer, with their padding."""
        self._layers = layers
        self._num_outputs = num_outputs
        self._lanes = lanes
        self._packed: WeakKeyDictionary[Adapter, _Packed] = WeakKeyDictionary()

    def of_step(self, adapters: Sequence[Adapter | None]) -> StepAdapters:
        """The adapters by sequence. The sequences must hold them until the step has ended."""
        packed = [None if each is None else self._of(each) for each in adapters]
        array = (ctypes.c_void_p * len(packed))(
            *(None if each is None else ctypes.addressof(each.matrices) for each in packed)
        )
        return StepAdapters(array, max(each.rank for each in packed if each is not None))

    def _of(self, adapter: Adapter) -> _Packed:
        packed = self._packed.get(adapter)
        if packed is None:
            packed = _Packed(adapter, self._layers, self._num_outputs, self._lanes)
            self._packed[adapter] = packed
        return packed
