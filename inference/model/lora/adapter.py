"""LoRA adapters in the form that the decoder computes with, and their loading."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from inference.engine.errors import InvalidAdapter
from inference.engine.interface import AdapterInfo
from inference.model.config import ModelConfig
from inference.model.layers.rotary import head_order, ordered_heads
from inference.model.lora.adapted import AdaptedLayer, Adapter, LowRank
from inference.model.lora.files import PATTERNS, AdapterFiles, read_adapter
from mesh.hub.model_folder import ModelNotFoundError, model_folder


class AdaptedModel(Protocol):
    """What is needed of a decoder to load adapters for it."""

    config: ModelConfig
    device: torch.device

    @property
    def adapted_layers(self) -> Sequence[AdaptedLayer]:
        """Keys of the matrices, layer by layer."""
        ...

    @property
    def adapter_dtype(self) -> torch.dtype:
        """The type of an adapter's matrices."""
        ...


class _Slot(NamedTuple):
    """A matrix of the decoder and the modules of the checkpoint that it is made of."""

    matrix: Hashable
    modules: Sequence[tuple[str, int]]
    """Names and numbers of outputs."""
    num_inputs: int
    num_ordered: int = 0
    """Outputs at the beginning that are in the order of the rotary embedding: q and k."""


class AdapterLoader:
    """Loads adapters for one model. For any thread; blocks."""

    def __init__(self, model: AdaptedModel, model_sha256: str, max_rank: int) -> None:
        self._model = model
        self._model_sha256 = model_sha256
        self._max_rank = max_rank

    def load(self, name: str, path: str) -> Adapter:
        """The adapter in a folder or a repository of the hub. Raises InvalidAdapter."""
        try:
            folder = model_folder(path, PATTERNS)
        except ModelNotFoundError as error:
            raise InvalidAdapter(f"lora_path: {error}", field="lora_path") from error
        except OSError as error:  # such as a name that is too long
            message = f"lora_path {path!r:.80} cannot be read: {error.strerror}"
            raise InvalidAdapter(message, field="lora_path") from error
        try:
            files = read_adapter(Path(folder), self._max_rank)
        except OSError as error:
            raise InvalidAdapter(f"{folder} cannot be read: {error.strerror}") from error
        digest = hashlib.sha256(f"{self._model_sha256}\0{files.sha256}".encode()).hexdigest()
        return Adapter(
            info=AdapterInfo(name=name, path=path, model_sha256=digest),
            root_hash=b"lora" + bytes.fromhex(digest)[:16],
            deltas=self._deltas(files),
        )

    def _deltas(self, files: AdapterFiles) -> dict[Hashable, LowRank]:
        config = self._model.config
        left = set(files.downs)
        deltas: dict[Hashable, LowRank] = {}
        for slot in _slots(self._model):
            used = [name for name, _ in slot.modules if name in files.downs]
            if used:
                left.difference_update(used)
                deltas[slot.matrix] = self._delta(slot, files, config)
        if left:
            raise InvalidAdapter(
                f"the adapter has matrices for {', '.join(sorted(left)[:3])}, which cannot be "
                f"adapted in {config.architecture}"
            )
        return deltas

    def _delta(self, slot: _Slot, files: AdapterFiles, config: ModelConfig) -> LowRank:
        downs: list[Tensor] = []
        ups: list[Tensor] = []
        begin, num_outputs = 0, sum(size for _, size in slot.modules)
        for name, size in slot.modules:
            if name in files.downs:
                down, up = files.downs[name], files.ups[name]
                if down.shape[1] != slot.num_inputs or up.shape[0] != size:
                    raise InvalidAdapter(
                        f"the adapter's matrices for {name} must have {slot.num_inputs} inputs and "
                        f"{size} outputs. Given: {down.shape[1]} and {up.shape[0]}"
                    )
                padded = torch.zeros(num_outputs, up.shape[1])
                padded[begin : begin + size] = up
                downs.append(down.float())
                ups.append(padded)
            begin += size
        up = torch.cat(ups, dim=1)
        up[: slot.num_ordered] = ordered_heads(
            up[: slot.num_ordered], head_order(config), config.head_dim
        )
        device, dtype = self._model.device, self._model.adapter_dtype
        return LowRank(torch.cat(downs).to(device, dtype), up.to(device, dtype))


def _slots(model: AdaptedModel) -> list[_Slot]:
    """Every matrix of the model's layers that can be adapted; not those of experts."""
    config, family = model.config, model.config.family
    hidden, inner = config.hidden_size, config.intermediate_size
    q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    slots = []
    for number, layer in enumerate(model.adapted_layers):
        prefix = f"{family.prefix}model.layers.{number}"
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        qkv = [
            (f"{attention}.{name}_proj", size)
            for name, size in zip("qkv", (q_size, kv_size, kv_size), strict=True)
        ]
        if family.qkv is not None:
            qkv = [(f"{attention}.{family.qkv}", q_size + 2 * kv_size)]
        slots.append(_Slot(layer.qkv, qkv, hidden, num_ordered=q_size + kv_size))
        slots.append(_Slot(layer.out, [(f"{attention}.o_proj", hidden)], q_size))
        if layer.gate_up is None or layer.down is None:
            continue
        gate_up = [(f"{mlp}.gate_proj", inner), (f"{mlp}.up_proj", inner)]
        if family.gate_up is not None:
            gate_up = [(f"{mlp}.{family.gate_up}", 2 * inner)]
        slots.append(_Slot(layer.gate_up, gate_up, hidden))
        slots.append(_Slot(layer.down, [(f"{mlp}.down_proj", hidden)], inner))
    return slots
