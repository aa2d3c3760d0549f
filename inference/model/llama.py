"""The decoder of all families, for inference only; `families` has what distinguishes them.

The tokens of all sequences of a step are one flat batch [num_tokens, hidden_size]; only the
attention distinguishes sequences. `Operations` compute everything between the matrix products:
torch's on any device, Triton kernels on CUDA. Matrices with the same input are merged (q, k, v;
gate, up).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from inference.kv_cache.kv_cache import KVCache
from inference.model.config import ModelConfig
from inference.model.layers.experts import Experts, FeedForward
from inference.model.layers.linear import Linear
from inference.model.layers.operations import Attention, Operations
from inference.model.layers.rotary import RotaryEmbedding
from inference.model.layers.torch_operations import TorchOperations
from inference.model.lora.adapted import AdaptedLayer
from inference.model.lora.operations import AdaptedRows, LoraOperations, adapted_rows
from inference.model.weights.reader import Quantisation, Reader
from inference.model.weights.weights import Weights
from inference.runner.step import Step
from inference.runner.step_inputs import StepInputs, make_inputs

MakeOperations = Callable[[ModelConfig, RotaryEmbedding], Operations]


def embedding_multiplier(config: ModelConfig, dtype: torch.dtype) -> float:
    """What embeddings are multiplied with, for activations of this type.

    The residual is kept divided by `residual_multiplier`, see `ModelConfig.norm_eps`.
    """
    multiplier = config.embedding_multiplier
    if config.family.scales_embeddings:
        multiplier = float(torch.tensor(multiplier, dtype=dtype))  # as Gemma was trained
    return multiplier / config.residual_multiplier


def adjust_logits(logits: Tensor, config: ModelConfig) -> Tensor:
    """Divides and limits the logits, for the families that do."""
    if config.logits_divisor != 1.0:
        logits = logits / config.logits_divisor
    if config.logits_softcap is not None:
        logits = torch.tanh(logits / config.logits_softcap) * config.logits_softcap
    return logits


class Layer:
    """One decoder layer: attention, then a gated feed-forward or experts, on a normed residual."""

    def __init__(self, config: ModelConfig, reader: Reader, number: int) -> None:
        hidden = config.hidden_size
        self._number = number
        self.rotates = number not in config.no_rope_layers
        prefix, names = f"model.layers.{number}", config.family.norms
        attention = f"{prefix}.self_attn"

        def norm(name: str | None) -> Tensor | None:
            return reader.norm(None if name is None else f"{prefix}.{name}", hidden)

        self.input_norm = norm(names.before_attention)
        self.attended_norm = norm(names.after_attention)
        self.post_norm = norm(names.before_mlp)
        self.mlp_norm = norm(names.after_mlp)
        self.qkv = reader.qkv(attention)
        self.out = reader.matrix(
            f"{attention}.o_proj",
            hidden,
            config.num_heads * config.head_dim,
            bias=config.output_bias,
        )
        self.qk_norms = reader.qk_norms(attention)
        self.sinks: Tensor | None = None
        if config.family.sinks:
            self.sinks = reader.tensor(f"{attention}.sinks", config.num_heads)
        self.mlp: FeedForward | Experts
        if config.experts is not None and number in config.experts.layers:
            self.mlp = reader.experts(prefix, config.experts)
        else:
            self.mlp = reader.feed_forward(f"{prefix}.mlp", config.intermediate_size)

    def __call__(
        self, x: Tensor, residual: Tensor | None, operations: Operations, attention: Attention
    ) -> tuple[Tensor, Tensor]:
        """Returns the layer's output and the residual that it is to be added to.

        Takes the same two of the previous layer; the first layer takes the embeddings and None.
        """
        normed, residual = _add_norm(x, residual, self.input_norm, operations)
        qkv = operations.multiply(normed, self.qkv)
        heads = attention(qkv, self._number, self.qk_norms, rotates=self.rotates, sinks=self.sinks)
        attended = operations.multiply(heads, self.out)
        if self.attended_norm is not None:
            attended = operations.norm(attended, self.attended_norm)
        normed, residual = _add_norm(attended, residual, self.post_norm, operations)
        output = self.mlp(normed, operations)
        if self.mlp_norm is not None:
            output = operations.norm(output, self.mlp_norm)
        return output, residual


def _add_norm(
    x: Tensor, residual: Tensor | None, norm: Tensor | None, operations: Operations
) -> tuple[Tensor, Tensor]:
    """The norm of the sum, and the sum; without a norm twice the sum."""
    if residual is not None and norm is not None:
        return operations.add_norm(x, residual, norm)
    total = x if residual is None else x + residual
    return (total if norm is None else operations.norm(total, norm)), total


class Llama:
    """Implements `Model` with torch tensors, on any device."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        *,
        max_context: int,
        dtype: torch.dtype,
        device: torch.device,
        quantisation: Quantisation | None = None,
        make_operations: MakeOperations = TorchOperations,
    ) -> None:
        """Reads all weights. Raises ModelLoadError if one is missing or has another shape.

        `quantisation` applies to the layers' matrices; everything else is in `dtype`.
        """
        self.config = config
        self.dtype = dtype
        self.device = device
        self.operations = make_operations(config, RotaryEmbedding(config, max_context, device))
        self.batch_invariant_operations = self.operations.batch_invariant()
        """For batch-invariant steps; the same object as `operations` if they are invariant."""
        quantise = self.operations.quantise
        reader = Reader(
            config, weights, dtype, device, quantisation=quantisation, quantise=quantise
        )
        self._embeddings, head = reader.embeddings_and_head()
        self._multiplier = embedding_multiplier(config, dtype)
        self._head = Linear(head)
        self.layers = [Layer(config, reader, number) for number in range(config.num_layers)]
        self._norm = reader.norm("model.norm", config.hidden_size)
        self.num_parameters = reader.num_parameters

    @property
    def adapted_layers(self) -> list[AdaptedLayer]:
        """The matrices that adapters add to, layer by layer; not those of experts."""
        layers = []
        for layer in self.layers:
            mlp = layer.mlp if isinstance(layer.mlp, FeedForward) else None
            matrices = (None, None) if mlp is None else (mlp.gate_up, mlp.down)
            layers.append(AdaptedLayer(layer.qkv, layer.out, *matrices))
        return layers

    @property
    def adapter_dtype(self) -> torch.dtype:
        """The type of an adapter's matrices."""
        return self.dtype

    def compute(self, step: Step, cache: KVCache) -> Tensor | None:
        """Logits [len(step.outputs), vocab_size] in float32; None if `step.outputs` is empty."""
        inputs = make_inputs(step, cache.block_size, self.device)
        adapted = adapted_rows(step, self.device) if step.adapters else ()
        states = self.states(inputs, cache, is_invariant=step.is_invariant, adapted=adapted)
        if not step.outputs:
            return None
        if len(step.outputs) != len(step.token_ids):
            states = states[inputs.outputs]
        return self.logits(states, is_invariant=step.is_invariant)

    def hidden(self, step: Step, cache: KVCache) -> Tensor:
        """Last hidden states [num_tokens, hidden_size] of all tokens."""
        return self.states(make_inputs(step, cache.block_size, self.device), cache)

    def logits(self, states: Tensor, *, is_invariant: bool = False) -> Tensor:
        """Logits [num_rows, vocab_size], float32, of last hidden states [num_rows, hidden_size]."""
        logits = self._operations(is_invariant).multiply(states, self._head).float()
        return adjust_logits(logits, self.config)

    def states(
        self,
        inputs: StepInputs,
        cache: KVCache,
        *,
        is_invariant: bool = False,
        adapted: Sequence[AdaptedRows] = (),
    ) -> Tensor:
        """Last hidden states [num_tokens, hidden_size].

        Without `inputs.row_ranges` the launched kernels do not depend on the tensors' values, so a
        CUDA graph can capture them.
        """
        operations = self._operations(is_invariant)
        if adapted:
            operations = LoraOperations(operations, adapted)
        attention = operations.attention(inputs, cache)
        x, residual = F.embedding(inputs.token_ids, self._embeddings), None
        if self._multiplier != 1.0:
            x = x * self._multiplier
        for layer in self.layers:
            x, residual = layer(x, residual, operations, attention)
        assert residual is not None, "a model has at least one layer"
        return _add_norm(x, residual, self._norm, operations)[0]

    def _operations(self, is_invariant: bool) -> Operations:
        return self.batch_invariant_operations if is_invariant else self.operations
