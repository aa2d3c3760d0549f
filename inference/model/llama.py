"""The Llama family's decoder, for inference only: Llama, Mistral, Qwen2, Qwen3, SmolLM.

The tokens of all sequences of a step are one flat batch [num_tokens, hidden_size]; only the
attention distinguishes sequences. `Operations` compute everything between the matrix products:
torch's on any device, Triton kernels on CUDA. Matrices with the same input are merged (q, k, v;
gate, up).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from inference.kv_cache.kv_cache import KVCache
from inference.model.config import ModelConfig
from inference.model.layers.linear import Fp8Linear, Int8Linear, Linear
from inference.model.layers.operations import Attention, Operations
from inference.model.layers.quantise import Quantise, quantise_rows
from inference.model.layers.rotary import RotaryEmbedding
from inference.model.layers.torch_operations import TorchOperations
from inference.model.weights.weights import Weights
from inference.runner.step import Step
from inference.runner.step_inputs import StepInputs, make_inputs

MakeOperations = Callable[[ModelConfig, RotaryEmbedding], Operations]
Quantisation = Literal["int8", "fp8"]


class Layer:
    """One decoder layer: attention, then a gated feed-forward, each on a normed residual."""

    def __init__(self, config: ModelConfig, reader: Reader, number: int) -> None:
        hidden, head_dim = config.hidden_size, config.head_dim
        self._number = number
        q_size, kv_size = config.num_heads * head_dim, config.num_kv_heads * head_dim
        self.rotates = number not in config.no_rope_layers
        prefix = f"model.layers.{number}"
        self.input_norm = reader.tensor(f"{prefix}.input_layernorm.weight", hidden)
        self.post_norm = reader.tensor(f"{prefix}.post_attention_layernorm.weight", hidden)
        attention = f"{prefix}.self_attn"
        self.qkv = reader.merged(
            [
                (f"{attention}.{name}_proj", size)
                for name, size in zip("qkv", (q_size, kv_size, kv_size), strict=True)
            ],
            hidden,
            bias=config.attention_bias,
        )
        self.out = reader.merged([(f"{attention}.o_proj", hidden)], q_size, bias=config.output_bias)
        self.qk_norms: tuple[Tensor, Tensor] | None = None
        if config.qk_norm:
            self.qk_norms = (
                reader.tensor(f"{attention}.q_norm.weight", head_dim),
                reader.tensor(f"{attention}.k_norm.weight", head_dim),
            )
        inner = config.intermediate_size
        mlp = f"{prefix}.mlp"
        self.gate_up = reader.merged(
            [(f"{mlp}.gate_proj", inner), (f"{mlp}.up_proj", inner)], hidden, bias=config.mlp_bias
        )
        self.down = reader.merged([(f"{mlp}.down_proj", hidden)], inner, bias=config.mlp_bias)

    def __call__(
        self, x: Tensor, residual: Tensor | None, operations: Operations, attention: Attention
    ) -> tuple[Tensor, Tensor]:
        """Returns the layer's output and the residual that it is to be added to.

        Takes the same two of the previous layer; the first layer takes the embeddings and None.
        """
        if residual is None:
            normed, residual = operations.norm(x, self.input_norm), x
        else:
            normed, residual = operations.add_norm(x, residual, self.input_norm)
        qkv = operations.multiply(normed, self.qkv)
        heads = attention(qkv, self._number, self.qk_norms, rotates=self.rotates)
        attended = operations.multiply(heads, self.out)
        normed, residual = operations.add_norm(attended, residual, self.post_norm)
        gated = operations.multiply_gate(normed, self.gate_up)
        return operations.multiply(gated, self.down), residual


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
        reader = Reader(weights, dtype, device, quantisation=quantisation, quantise=quantise)
        self._embeddings, head = reader.embeddings_and_head(config)
        self._head = Linear(head)
        self._layers = [Layer(config, reader, number) for number in range(config.num_layers)]
        self._norm = reader.tensor("model.norm.weight", config.hidden_size)
        self.num_parameters = reader.num_parameters

    def compute(self, step: Step, cache: KVCache) -> Tensor | None:
        """Logits [len(step.outputs), vocab_size] in float32; None if `step.outputs` is empty."""
        inputs = make_inputs(step, cache.block_size, self.device)
        states = self.states(inputs, cache, is_invariant=step.is_invariant)
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
        return self._operations(is_invariant).multiply(states, self._head).float()

    def states(self, inputs: StepInputs, cache: KVCache, *, is_invariant: bool = False) -> Tensor:
        """Last hidden states [num_tokens, hidden_size].

        Without `inputs.row_ranges` the launched kernels do not depend on the tensors' values, so a
        CUDA graph can capture them.
        """
        operations = self._operations(is_invariant)
        attention = operations.attention(inputs, cache)
        x, residual = F.embedding(inputs.token_ids, self._embeddings), None
        for layer in self._layers:
            x, residual = layer(x, residual, operations, attention)
        assert residual is not None, "a model has at least one layer"
        return operations.add_norm(x, residual, self._norm)[0]

    def _operations(self, is_invariant: bool) -> Operations:
        return self.batch_invariant_operations if is_invariant else self.operations


class Reader:
    """Reads tensors of a checkpoint, converts them to a type, and counts parameters."""

    def __init__(
        self,
        weights: Weights,
        dtype: torch.dtype,
        device: torch.device,
        *,
        quantisation: Quantisation | None = None,
        quantise: Quantise = quantise_rows,
    ) -> None:
        self._quantisation = quantisation
        self._quantise = quantise
        self._weights = weights
        self._dtype = dtype
        self._device = device
        self.num_parameters = 0

    def tensor(self, name: str, *shape: int) -> Tensor:
        """Reads a tensor of this name and shape."""
        tensor = self._weights.take(name, shape)
        self.num_parameters += tensor.numel()
        return tensor.to(device=self._device, dtype=self._dtype)

    def embeddings_and_head(self, config: ModelConfig) -> tuple[Tensor, Tensor]:
        """Input and output embeddings, each [vocab_size, hidden_size]; the same tensor if tied."""
        shape = (config.vocab_size, config.hidden_size)
        embeddings = self.tensor("model.embed_tokens.weight", *shape)
        if config.tie_word_embeddings:
            self._weights.skip("lm_head.weight")  # a copy of the embeddings in some checkpoints
            return embeddings, embeddings
        return embeddings, self.tensor("lm_head.weight", *shape)

    def merged(self, parts: list[tuple[str, int]], num_inputs: int, *, bias: bool) -> Linear:
        """Merges matrices with the same input; each part is a name and its number of outputs."""
        matrices = [self.tensor(f"{name}.weight", size, num_inputs) for name, size in parts]
        biases = [self.tensor(f"{name}.bias", size) for name, size in parts] if bias else []
        matrix, bias_vector = torch.cat(matrices), torch.cat(biases) if biases else None
        if self._quantisation == "fp8":
            return Fp8Linear(matrix, bias_vector, self._quantise)
        if self._quantisation == "int8":
            return Int8Linear(matrix, bias_vector)
        return Linear(matrix, bias_vector)
