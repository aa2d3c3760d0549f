"""Reads a model's weights from GGUF files, by the names of transformers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, ReaderTensor
from gguf.quants import dequantize

from inference.engine.errors import ModelLoadError
from inference.model.layers.grouped import Bits, GroupedWeight
from inference.model.weights import gguf_blocks
from inference.model.weights.safetensors_weights import sampled_rows

_NAMES: Mapping[str, str] = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_LAYER_NAMES: Mapping[str, str] = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_NORMS_AROUND: Mapping[str, str] = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_LAYER_NAMES_OF: Mapping[str, Mapping[str, str]] = {
    "gemma2": _NORMS_AROUND,
    "gemma3": _NORMS_AROUND,
    "phi3": {"mlp.gate_up_proj": "ffn_up"},
}
"""Names that are different in some architectures."""

_LAYER = re.compile(r"model\.layers\.(?P<number>\d+)\.(?P<name>.+)")

_INTERLEAVED = ("llama", "smollm3")
"""Architectures whose q and k rows are stored in the order that llama.cpp rotates them in."""

_COMPUTED = frozenset(
    ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"]
)
"""Tensors that the configuration is made of."""

_WITH_OFFSET = ("gemma", "gemma2", "gemma3")
"""Architectures whose files have one added to the weights of norms."""


class GgufWeights:
    """The tensors of a GGUF file by transformers' names, expanded to float32 on demand."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Reads the headers of all parts. Raises ModelLoadError if one is not GGUF."""
        self._paths = paths
        self._tensors: dict[str, ReaderTensor] = {}
        self._used: set[str] = set()
        try:
            readers = [GGUFReader(path) for path in paths]
        except (ValueError, OSError, IndexError) as error:
            raise ModelLoadError(f"{paths[0]} is not a valid GGUF file: {error}") from error
        for reader in readers:
            self._tensors.update((tensor.name, tensor) for tensor in reader.tensors)
        architecture = _value(readers[0], "general.architecture")
        self._layer_names = {**_LAYER_NAMES, **_LAYER_NAMES_OF.get(architecture, {})}
        self._norm_offset = 1.0 if architecture in _WITH_OFFSET else 0.0
        num_heads = _value(readers[0], f"{architecture}.attention.head_count") or 1
        num_kv_heads = _value(readers[0], f"{architecture}.attention.head_count_kv") or num_heads
        self._num_heads = (
            {"self_attn.q_proj": int(num_heads), "self_attn.k_proj": int(num_kv_heads)}
            if architecture in _INTERLEAVED
            else {}
        )

    def __contains__(self, name: str) -> bool:
        return self._gguf_name(name) in self._tensors

    def take(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Reads a tensor. Raises ModelLoadError if it is missing or has another shape."""
        tensor = self._take(name, shape)
        values = self._expand(tensor).reshape(shape)
        if self._norm_offset and "norm" in name:
            values = values - self._norm_offset
        num_heads = self._heads_to_order(name)
        if num_heads is not None:
            values = _rotated_by_halves(values, num_heads)
        return torch.from_numpy(np.ascontiguousarray(values))

    def take_grouped(self, name: str, shape: tuple[int, ...]) -> GroupedWeight | None:
        """See `Weights.take_grouped`."""
        tensor = self._take(name, shape)
        if len(shape) != 2:
            return None
        weight = gguf_blocks.grouped(tensor.data, tensor.tensor_type)
        num_heads = self._heads_to_order(name)
        if weight is None or num_heads is None:
            return weight
        return weight.rows(torch.from_numpy(_rotated_by_halves(np.arange(shape[0]), num_heads)))

    @property
    def stored_bits(self) -> Bits | None:
        """See `Weights.stored_bits`; of the layers' matrices."""
        sizes: Counter[Bits | None] = Counter()
        for name, tensor in self._tensors.items():
            if name.startswith("blk."):
                sizes[gguf_blocks.bits_of(tensor.tensor_type)] += tensor.n_elements
        return sizes.most_common(1)[0][0] if sizes else None

    def _take(self, name: str, shape: tuple[int, ...]) -> ReaderTensor:
        """A tensor of this shape, counted as used."""
        source = self._gguf_name(name)
        tensor = self._tensors.get(source)
        if tensor is None:
            raise ModelLoadError(f"{self._paths[0]}: tensor {source} is missing")
        found = tuple(int(size) for size in reversed(tensor.shape))
        if found != shape:
            raise ModelLoadError(
                f"{self._paths[0]}: tensor {source} must have shape {list(shape)}, "
                f"has {list(found)}"
            )
        self._used.add(source)
        return tensor

    def _heads_to_order(self, name: str) -> int | None:
        """The number of heads of a tensor whose rows are in llama.cpp's order."""
        for suffix, num_heads in self._num_heads.items():
            if f".{suffix}." in name:
                return num_heads
        return None

    def skip(self, name: str) -> None:
        """Counts a redundant tensor as used, whether the file has it or not."""
        self._used.add(self._gguf_name(name))

    def skip_all(self, prefix: str) -> None:
        """Counts all tensors whose names begin so as used."""
        self._used.update(name for name in self._tensors if name.startswith(prefix))

    def samples(self) -> Iterator[bytes]:
        """Of each tensor: name, type, shape, and evenly spaced rows as they are stored."""
        for name in sorted(self._tensors):
            tensor = self._tensors[name]
            yield f"{name}\0{tensor.tensor_type.name}\0{tensor.shape.tolist()}\0".encode()
            for rows in sampled_rows(tensor.data.shape):
                yield tensor.data[rows].tobytes()

    @property
    def unused(self) -> list[str]:
        """GGUF names of tensors that were neither taken nor skipped."""
        return sorted(self._tensors.keys() - self._used - _COMPUTED)

    def _gguf_name(self, name: str) -> str:
        stem, _, kind = name.rpartition(".")
        if match := _LAYER.fullmatch(stem):
            layer_name = self._layer_names.get(match["name"], match["name"])
            return f"blk.{match['number']}.{layer_name}.{kind}"
        return f"{_NAMES.get(stem, stem)}.{kind}"

    def _expand(self, tensor: ReaderTensor) -> np.ndarray:
        try:
            # A copy: the reader's arrays are read-only views of the file.
            return np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        except NotImplementedError as error:
            raise ModelLoadError(
                f"{self._paths[0]}: tensor {tensor.name} has type {tensor.tensor_type.name}, "
                "which is not supported"
            ) from error


def _value(reader: GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()


def _rotated_by_halves(values: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of each head from pairs (2i, 2i + 1), as llama.cpp has them, to (i, i + half)."""
    half = values.shape[0] // num_heads // 2
    pairs = values.reshape(num_heads, half, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)
