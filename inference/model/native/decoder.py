"""The Llama family's decoder with one C call per step; the same model as `llama.Llama`."""

from __future__ import annotations

import ctypes
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from inference.kv_cache.kv_cache import KVCache
from inference.model.config import ModelConfig
from inference.model.layers.experts import FeedForward
from inference.model.layers.linear import GroupedLinear
from inference.model.layers.rotary import RotaryEmbedding
from inference.model.llama import Layer, adjust_logits, embedding_multiplier
from inference.model.lora.adapted import AdaptedLayer
from inference.model.native import library
from inference.model.native.adapters import NativeAdapters
from inference.model.native.packing import (
    MatrixPointers,
    PackedMatrix,
    WeightType,
    cache_type,
)
from inference.model.native.pool import ThreadPool
from inference.model.weights.reader import Reader
from inference.model.weights.weights import Weights
from inference.runner.step import Step

_MAX_HEAD_DIM = 256
_MAX_HIDDEN = 16_384
_Addresses = tuple["ctypes.Array[ctypes.c_void_p]", "ctypes.Array[ctypes.c_void_p]"]


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
                "num_kv_heads",
                "head_dim",
                "window",
                "qk_norm",
            )
        ],
        ("eps", ctypes.c_float),
    ]


class _Layer(ctypes.Structure):
    _fields_ = [
        *[(name, MatrixPointers) for name in ("qkv", "out", "gate_up", "down")],
        *[(name, ctypes.c_void_p) for name in ("input_norm", "post_norm", "q_norm", "k_norm")],
        ("rotates", ctypes.c_int32),
    ]


class _StepArguments(ctypes.Structure):
    _fields_ = [
        *[
            (name, ctypes.c_int32)
            for name in (
                "num_tokens",
                "num_sequences",
                "table_stride",
                "num_outputs",
                "pages_per_block",
            )
        ],
        *[
            (name, ctypes.c_void_p)
            for name in (
                "hidden",
                "positions",
                "begins",
                "tables",
                "outputs",
                "logits",
                "normed",
                "keys",
                "values",
                "adapters",
            )
        ],
        ("max_rank", ctypes.c_int32),
    ]


def unsupported_reason(config: ModelConfig, block_size: int) -> str | None:
    """Why the native decoder cannot compute this model; None if it can."""
    try:
        lanes = library.lanes()
    except library.Unavailable as error:
        return str(error)
    if config.unusual_features:
        return f"the model has {config.unusual_features[0]}"
    for name, value, multiple in (
        ("hidden_size", config.hidden_size, 2 * lanes),
        ("intermediate_size", config.intermediate_size, lanes),
        ("head_dim", config.head_dim, lanes),
        ("block_size", block_size, lanes),
    ):
        if value % multiple:
            return f"{name} {value} is not a multiple of {multiple}"
    if config.head_dim > _MAX_HEAD_DIM:
        return f"head_dim {config.head_dim} is over {_MAX_HEAD_DIM}"
    if config.hidden_size > _MAX_HIDDEN:
        return f"hidden_size {config.hidden_size} is over {_MAX_HIDDEN}"
    return None


class NativeDecoder:
    """Implements `Model` on the CPU, with activations in float32."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        *,
        max_context: int,
        kind: WeightType,
        threads: int,
    ) -> None:
        """Reads and packs all weights.

        Raises ModelLoadError if a weight is missing or has another shape.
        """
        read_as = torch.float32 if kind == "float32" else torch.bfloat16
        quantisation = kind if kind == "int8" or kind == "int4" else None
        cpu = torch.device("cpu")
        reader = Reader(config, weights, read_as, cpu, quantisation=quantisation)
        self.config = config
        self._kind = kind
        self._library = library.load()
        self._lanes = library.lanes()
        embeddings, head = (
            reader.embeddings_and_head()
            if quantisation is None
            else reader.quantised_embeddings_and_head()
        )
        self._head = PackedMatrix(head, None, kind, self._lanes)
        self._embeddings: Tensor | PackedMatrix
        if isinstance(embeddings, Tensor):
            self._embeddings = embeddings
        elif embeddings is head:
            self._embeddings = self._head
        else:
            self._embeddings = PackedMatrix(embeddings, None, kind, self._lanes)
        self._kept_alive: list[object] = []
        self._matrices = [self._head]
        self._num_outputs: list[int] = []
        self._layers = [
            self._pack(Layer(config, reader, number)) for number in range(config.num_layers)
        ]
        norm = reader.norm("model.norm", config.hidden_size)
        assert norm is not None, "it has a name"
        self._norm = norm.float().contiguous()
        self._cosines, self._sines = RotaryEmbedding(config, max_context, cpu).tables
        self.num_parameters = reader.num_parameters
        self.dtype = torch.float32 if kind == "float32" else torch.bfloat16
        self.device = cpu
        self._multiplier = embedding_multiplier(config, self.dtype)
        self._library.weir_decoder_new.restype = ctypes.c_void_p
        self.pool = ThreadPool(threads)
        self._handle: int | None = self._open()
        self._addresses: WeakKeyDictionary[KVCache, _Addresses] = WeakKeyDictionary()
        self._adapters = NativeAdapters(self.adapted_layers, self._num_outputs, self._lanes)

    @property
    def adapted_layers(self) -> list[AdaptedLayer]:
        """Keys of the matrices that adapters add to, layer by layer."""
        return [
            AdaptedLayer(*((number, place) for place in range(len(AdaptedLayer._fields))))
            for number in range(self.config.num_layers)
        ]

    @property
    def adapter_dtype(self) -> torch.dtype:
        """The type of an adapter's matrices."""
        return torch.float32

    def compute(self, step: Step, cache: KVCache) -> Tensor | None:
        """Logits [len(step.outputs), vocab_size] in float32; None if `step.outputs` is empty."""
        logits = torch.empty(len(step.outputs), self._head.num_outputs)
        self._run(step, cache, step.outputs, logits=logits)
        if not step.outputs:
            return None
        return adjust_logits(logits[:, : self.config.vocab_size], self.config)

    def hidden(self, step: Step, cache: KVCache) -> Tensor:
        """Last hidden states [num_tokens, hidden_size] of all tokens."""
        hidden = torch.empty(len(step.token_ids), self.config.hidden_size)
        self._run(step, cache, list(range(len(step.token_ids))), normed=hidden)
        return hidden

    def _run(
        self,
        step: Step,
        cache: KVCache,
        outputs: list[int],
        *,
        logits: Tensor | None = None,
        normed: Tensor | None = None,
    ) -> None:
        hidden = self._embed(step.token_ids)
        if self._multiplier != 1.0:
            hidden *= self._multiplier
        adapters = self._adapters.of_step(step.adapters) if step.adapters else None
        stride = max(len(table) for table in step.block_tables)
        tables = [[*table, *[0] * (stride - len(table))] for table in step.block_tables]
        arrays = [
            torch.tensor(values, dtype=torch.int32)
            for values in (step.positions, step.begins, tables, outputs)
        ]
        arguments = _StepArguments(
            len(step.token_ids),
            step.num_sequences,
            stride,
            len(outputs),
            cache.block_size // self._lanes,
            hidden.data_ptr(),
            *(array.data_ptr() for array in arrays),
            logits.data_ptr() if logits is not None and outputs else None,
            normed.data_ptr() if normed is not None else None,
            *(ctypes.addressof(array) for array in self._addresses_of(cache)),
            *((None, 0) if adapters is None else (ctypes.addressof(adapters.array), adapters.rank)),
        )
        run = self._library.weir_decoder_run
        if self.pool.run(run, ctypes.c_void_p(self._handle), ctypes.byref(arguments)):
            raise MemoryError("out of memory for a step of the native decoder")

    @property
    def weight_bytes(self) -> int:
        """Bytes of all matrices in memory, with their scales."""
        matrices = {id(each): each for each in self._matrices}
        if isinstance(self._embeddings, Tensor):
            return sum(each.num_bytes for each in matrices.values()) + self._embeddings.nbytes
        matrices[id(self._embeddings)] = self._embeddings
        return sum(each.num_bytes for each in matrices.values())

    def _embed(self, token_ids: list[int]) -> Tensor:
        """[num_tokens, hidden_size] in float32."""
        table = self._embeddings
        if isinstance(table, Tensor):
            return F.embedding(torch.tensor(token_ids), table).float()
        hidden = torch.empty(len(token_ids), self.config.hidden_size)
        self._library.weir_expand_rows(
            ctypes.byref(table.pointers),
            (ctypes.c_int32 * len(token_ids))(*token_ids),
            *hidden.shape,
            ctypes.c_void_p(hidden.data_ptr()),
        )
        return hidden

    def _addresses_of(self, cache: KVCache) -> _Addresses:
        """The addresses of each layer's keys and values, which are constant for a cache."""
        addresses = self._addresses.get(cache)
        if addresses is None:
            layers = [cache.layer(number) for number in range(self.config.num_layers)]
            keys, values = (
                (ctypes.c_void_p * len(layers))(*(tensor.data_ptr() for tensor in tensors))
                for tensors in zip(*layers, strict=True)
            )
            addresses = self._addresses[cache] = keys, values
        return addresses

    def close(self) -> None:
        """Frees the decoder's memory; it cannot be used afterwards."""
        if self._handle is not None:
            self._library.weir_decoder_free(ctypes.c_void_p(self._handle))
            self._handle = None

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self.close()

    def _open(self) -> int:
        config = self.config
        settings = _Config(
            cache_type(self._kind),
            config.num_layers,
            config.hidden_size,
            config.intermediate_size,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            config.sliding_window or 0,
            int(config.qk_norm),
            config.norm_eps,
        )
        layers = (_Layer * config.num_layers)(*self._layers)
        handle = self._library.weir_decoder_new(
            self.pool.handle,
            ctypes.byref(settings),
            layers,
            ctypes.byref(self._head.pointers),
            *(
                ctypes.c_void_p(tensor.data_ptr())
                for tensor in (self._norm, self._cosines, self._sines)
            ),
        )
        if not handle:
            raise MemoryError("out of memory for the native decoder")
        return int(handle)

    def _pack(self, layer: Layer) -> _Layer:
        mlp, input_norm, post_norm = layer.mlp, layer.input_norm, layer.post_norm
        assert isinstance(mlp, FeedForward), "`unsupported_reason` refuses experts"
        assert input_norm is not None, "and other places of norms"
        assert post_norm is not None, "and other places of norms"
        matrices = [
            PackedMatrix(
                linear.grouped if isinstance(linear, GroupedLinear) else linear.weight,
                linear.bias,
                self._kind,
                self._lanes,
                gated=linear is mlp.gate_up,
            )
            for linear in (layer.qkv, layer.out, mlp.gate_up, mlp.down)
        ]
        norms = [input_norm, post_norm, *(layer.qk_norms or ())]
        floats = [norm.float().contiguous() for norm in norms]
        self._matrices += matrices
        self._num_outputs = [each.num_outputs for each in matrices]  # the same in all layers
        self._kept_alive += floats
        pointers = [norm.data_ptr() for norm in floats] + [None] * (4 - len(floats))
        return _Layer(*(matrix.pointers for matrix in matrices), *pointers, layer.rotates)
