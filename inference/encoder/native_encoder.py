"""The forward pass of an encoder with one C call per batch; the same model as `TorchEncoder`."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from inference.encoder.batch import Batch
from inference.encoder.config import EncoderConfig
from inference.encoder.layers import Embeddings, Layer, Norm, Reader
from inference.model.native import library
from inference.model.native.packing import (
    MatrixPointers,
    PackedMatrix,
    WeightType,
    cache_type,
)
from inference.model.native.pool import ThreadPool

_ACTIVATIONS = {"gelu": 0, "gelu_new": 1, "gelu_pytorch_tanh": 1, "relu": 2}
_MAX_HEAD_DIM = 256


class _Config(ctypes.Structure):
    _fields_ = [
        *[
            (name, ctypes.c_int32)
            for name in (
                "cache_type",
                "num_layers",
                "hidden_size",
                "intermediate_size",
                "num_heads",
                "head_dim",
                "activation",
            )
        ],
        ("eps", ctypes.c_float),
    ]


class _Layer(ctypes.Structure):
    _fields_ = [
        *[(name, MatrixPointers) for name in ("qkv", "out", "inner", "outer")],
        *[
            (name, ctypes.c_void_p)
            for name in (
                "attention_norm",
                "attention_norm_bias",
                "output_norm",
                "output_norm_bias",
            )
        ],
    ]


class _BatchArguments(ctypes.Structure):
    _fields_ = [
        ("num_tokens", ctypes.c_int32),
        ("num_texts", ctypes.c_int32),
        ("hidden", ctypes.c_void_p),
        ("begins", ctypes.c_void_p),
    ]


def unsupported_reason(config: EncoderConfig) -> str | None:
    """Why the native encoder cannot compute this model; None if it can."""
    try:
        lanes = library.lanes()
    except library.Unavailable as error:
        return str(error)
    for name, value, multiple in (
        ("hidden_size", config.hidden_size, 2 * lanes),
        ("intermediate_size", config.intermediate_size, 2 * lanes),
        ("hidden_size / num_attention_heads", config.head_dim, lanes),
    ):
        if value % multiple:
            return f"{name} {value} is not a multiple of {multiple}"
    if config.head_dim > _MAX_HEAD_DIM:
        return f"hidden_size / num_attention_heads {config.head_dim} is over {_MAX_HEAD_DIM}"
    return None


class NativeEncoder:
    """Implements `Encoder` on the CPU, with activations in float32."""

    device = torch.device("cpu")

    def __init__(
        self, config: EncoderConfig, reader: Reader, kind: WeightType, threads: int
    ) -> None:
        """Reads and packs all weights; `reader` must not quantise. Raises ModelLoadError."""
        self.config = config
        self._library = library.load()
        self._lanes = library.lanes()
        self._kind = kind
        self._embeddings = Embeddings(reader)
        self._kept_alive: list[object] = []
        layers = [self._pack(Layer(reader, number)) for number in range(config.num_layers)]
        self._library.weir_encoder_new.restype = ctypes.c_void_p
        self._pool = ThreadPool(threads)
        self._handle: int | None = self._open((_Layer * config.num_layers)(*layers))

    def hidden(self, batch: Batch) -> Tensor:
        """Last hidden states [num_tokens, hidden_size] in float32."""
        ids, positions, types = map(torch.tensor, (batch.token_ids, batch.positions, batch.types))
        hidden = self._embeddings.sums(ids, positions, types).float().contiguous()
        begins = torch.tensor(batch.begins, dtype=torch.int32)
        arguments = _BatchArguments(
            batch.num_tokens, batch.num_texts, hidden.data_ptr(), begins.data_ptr()
        )
        run = self._library.weir_encoder_run
        if self._pool.run(run, ctypes.c_void_p(self._handle), ctypes.byref(arguments)):
            raise MemoryError("out of memory for a batch of the native encoder")
        return hidden

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self._library.weir_encoder_free(ctypes.c_void_p(self._handle))
            self._handle = None

    def _open(self, layers: ctypes.Array[_Layer]) -> int:
        config = self.config
        settings = _Config(
            cache_type(self._kind),
            config.num_layers,
            config.hidden_size,
            config.intermediate_size,
            config.num_heads,
            config.head_dim,
            _ACTIVATIONS[config.activation],
            config.layer_norm_eps,
        )
        handle = self._library.weir_encoder_new(
            self._pool.handle,
            ctypes.byref(settings),
            layers,
            *map(ctypes.c_void_p, self._norm(self._embeddings.norm)),
        )
        if not handle:
            raise MemoryError("out of memory for the native encoder")
        return int(handle)

    def _pack(self, layer: Layer) -> _Layer:
        matrices = [
            PackedMatrix(linear.weight, linear.bias, self._kind, self._lanes)
            for linear in (layer.qkv, layer.attention_output, layer.inner, layer.outer)
        ]
        self._kept_alive.append(matrices)
        norms = (*self._norm(layer.attention_norm), *self._norm(layer.output_norm))
        return _Layer(*(matrix.pointers for matrix in matrices), *norms)

    def _norm(self, norm: Norm) -> tuple[int, int]:
        """The addresses of weight and bias in float32."""
        floats = [each.float().contiguous() for each in (norm.weight, norm.bias)]
        self._kept_alive.append(floats)
        return floats[0].data_ptr(), floats[1].data_ptr()
