"""Reads a checkpoint's tensors in the form that the decoder computes with, by family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from inference.model.config import ExpertConfig, ModelConfig
from inference.model.families import ExpertNames
from inference.model.layers.experts import Experts, FeedForward, SharedExpert
from inference.model.layers.grouped import Bits, GroupedWeight, joined, quantise_groups
from inference.model.layers.linear import Fp8Linear, GroupedLinear, Linear
from inference.model.layers.quantise import Quantise, quantise_rows
from inference.model.layers.rotary import head_order, ordered_heads
from inference.model.weights.weights import Weights

Quantisation = Literal["int8", "int4", "fp8"]
Rows = Tensor | GroupedWeight
"""A matrix [num_outputs, num_inputs]."""


class Reader:
    """Reads tensors of a checkpoint, converts them to a type, and counts parameters.

    Names are those of the family without its prefix. Matrices with the same input are merged: q, k
    and v; gate and up.

    With int8 and int4, matrices that a checkpoint has in groups of integers keep their integers and
    scales. With int8 those of four bits are in eight, with int4 those of eight bits are kept only
    if most of the checkpoint has four. Other matrices are quantised, in such a checkpoint to eight.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        dtype: torch.dtype,
        device: torch.device,
        *,
        quantisation: Quantisation | None = None,
        quantise: Quantise = quantise_rows,
    ) -> None:
        self._config = config
        self._family = config.family
        self._quantisation = quantisation
        self._quantise = quantise
        self._weights = weights
        self._dtype = dtype
        self._device = device
        self._order = head_order(config)
        self._bits: Bits = 4 if quantisation == "int4" and weights.stored_bits != 4 else 8
        self._keeps_groups = quantisation == "int8" or (
            quantisation == "int4" and weights.stored_bits == 4
        )
        self.num_parameters = 0

    def tensor(self, name: str, *shape: int) -> Tensor:
        """Reads a tensor of this name and shape."""
        return self._take(name, shape).to(device=self._device, dtype=self._dtype)

    def norm(self, name: str | None, size: int) -> Tensor | None:
        """The weights of a norm; None without a name.

        With an offset they remain in float32: around zero, their own type has more digits.
        """
        if name is None:
            return None
        offset = self._family.norm_offset
        if not offset:
            return self.tensor(f"{name}.weight", size)
        return self._take(f"{name}.weight", (size,)).to(self._device, torch.float32) + offset

    def embeddings_and_head(self) -> tuple[Tensor, Tensor]:
        """Input and output embeddings, each [vocab_size, hidden_size]; the same tensor if tied."""
        embeddings, head = self._tables(self.tensor)
        assert isinstance(embeddings, Tensor), "`tensor` returns them"
        assert isinstance(head, Tensor), "`tensor` returns them"
        return embeddings, head

    def quantised_embeddings_and_head(self) -> tuple[Rows, Rows]:
        """The same with int8 or int4, the head in eight bits unless stored in four.

        The embeddings are not quantised with int8, unless they are stored so.
        """
        embeddings, head = self._tables(self.rows)
        is_tied = head is embeddings
        if isinstance(head, Tensor):
            head = quantise_groups(head, 8)
        if isinstance(embeddings, Tensor) and self._quantisation == "int4":
            embeddings = head if is_tied else quantise_groups(embeddings, 8)
        return embeddings, head

    def _tables(self, read: Callable[..., Rows]) -> tuple[Rows, Rows]:
        config = self._config
        shape = (config.vocab_size, config.hidden_size)
        for prefix in self._family.ignored:
            self._weights.skip_all(prefix)
        embeddings = read("model.embed_tokens.weight", *shape)
        if config.tie_word_embeddings:
            # A copy of the embeddings in some checkpoints.
            self._weights.skip(f"{self._family.prefix}lm_head.weight")
            return embeddings, embeddings
        return embeddings, read("lm_head.weight", *shape)

    def qkv(self, attention: str) -> Linear:
        """The merged projections of q, k and v."""
        config = self._config
        sizes = [
            heads * config.head_dim
            for heads in (config.num_heads, config.num_kv_heads, config.num_kv_heads)
        ]
        names = [f"{attention}.{name}_proj" for name in "qkv"]
        merged = None if self._family.qkv is None else f"{attention}.{self._family.qkv}"
        has_bias = config.attention_bias
        weights, biases = self._parts(names, sizes, config.hidden_size, merged, bias=has_bias)
        weights[:2] = map(self._ordered_rows, weights[:2])
        biases[:2] = map(self._ordered, biases[:2])
        return self.linear(weights, biases)

    def qk_norms(self, attention: str) -> tuple[Tensor, Tensor] | None:
        """Weights of the norms on q and k, [head_dim] or [num_heads * head_dim]; None without."""
        config = self._config
        if not config.qk_norm:
            return None
        heads = (config.num_heads, config.num_kv_heads) if self._family.qk_norm == "all" else (1, 1)
        norms = []
        for name, num_heads in zip(("q_norm", "k_norm"), heads, strict=True):
            norm = self.norm(f"{attention}.{name}", num_heads * config.head_dim)
            assert norm is not None, "it has a name"
            norms.append(self._ordered(norm))
        return norms[0], norms[1]

    def feed_forward(self, mlp: str, inner: int) -> FeedForward:
        """A gated feed-forward with `inner` inner values."""
        config = self._config
        names = [f"{mlp}.gate_proj", f"{mlp}.up_proj"]
        merged = None if self._family.gate_up is None else f"{mlp}.{self._family.gate_up}"
        has_bias = config.mlp_bias
        parts = self._parts(names, [inner] * 2, config.hidden_size, merged, bias=has_bias)
        gate_up = self.linear(*parts)
        down = self.matrix(f"{mlp}.down_proj", config.hidden_size, inner, bias=has_bias)
        return FeedForward(gate_up, down)

    def experts(self, layer: str, config: ExpertConfig) -> Experts:
        """The mixture of experts of a layer."""
        names = self._family.experts
        assert names is not None, "the family has experts"
        block, hidden = f"{layer}.{names.block}", self._config.hidden_size
        router = f"{block}.{names.router}"
        bias = self.tensor(f"{router}.bias", config.num_experts) if names.router_bias else None
        weight = self.tensor(f"{router}.weight", config.num_experts, hidden)
        read = self._stacked_experts if names.is_stacked else self._separate_experts
        return Experts(
            Linear(weight, bias),
            read(f"{block}.experts", names, config),
            self._shared_expert(block, names, config),
            config,
        )

    def _shared_expert(
        self, block: str, names: ExpertNames, config: ExpertConfig
    ) -> SharedExpert | None:
        if names.shared is None:
            return None
        mlp = self.feed_forward(f"{block}.{names.shared}", config.shared_intermediate_size)
        gate = self.tensor(f"{block}.{names.shared}_gate.weight", 1, self._config.hidden_size)
        return SharedExpert(mlp, gate)

    def _separate_experts(
        self, block: str, names: ExpertNames, config: ExpertConfig
    ) -> Sequence[FeedForward]:
        inner, hidden = config.intermediate_size, self._config.hidden_size
        experts = []
        for number in range(config.num_experts):
            expert = f"{block}.{number}"
            pair = [f"{expert}.{names.gate}", f"{expert}.{names.up}"]
            parts = self._parts(pair, [inner, inner], hidden, None, bias=False)
            experts.append(
                FeedForward(
                    self.linear(*parts),
                    self.matrix(f"{expert}.{names.down}", hidden, inner, bias=False),
                )
            )
        return experts

    def _stacked_experts(
        self, block: str, _: ExpertNames, config: ExpertConfig
    ) -> Sequence[FeedForward]:
        number, inner, hidden = (
            config.num_experts,
            config.intermediate_size,
            self._config.hidden_size,
        )
        gate_ups = self.tensor(f"{block}.gate_up_proj", number, hidden, 2 * inner)
        gate_up_biases = self.tensor(f"{block}.gate_up_proj_bias", number, 2 * inner)
        downs = self.tensor(f"{block}.down_proj", number, inner, hidden)
        down_biases = self.tensor(f"{block}.down_proj_bias", number, hidden)
        return [
            FeedForward(
                self.linear([_halves(gate_up.t())], [_halves(gate_up_bias)]),
                self.linear([down.t().contiguous()], [down_bias]),
            )
            for gate_up, gate_up_bias, down, down_bias in zip(
                gate_ups, gate_up_biases, downs, down_biases, strict=True
            )
        ]

    def matrix(self, name: str, num_outputs: int, num_inputs: int, *, bias: bool) -> Linear:
        """A matrix that is not merged with others."""
        return self.linear(*self._parts([name], [num_outputs], num_inputs, None, bias=bias))

    def linear(self, parts: Sequence[Rows], biases: Sequence[Tensor] = ()) -> Linear:
        """A matrix with the outputs of all parts, quantised if wanted."""
        bias = torch.cat(list(biases)) if biases else None
        if self._quantisation in ("int8", "int4"):
            return GroupedLinear(self._grouped(parts), bias)
        weight = torch.cat([_expanded(part) for part in parts])
        if self._quantisation == "fp8":
            return Fp8Linear(weight, bias, self._quantise)
        return Linear(weight, bias)

    def _grouped(self, parts: Sequence[Rows]) -> GroupedWeight:
        stored = [part for part in parts if isinstance(part, GroupedWeight)]
        if len(stored) == len(parts):
            together = joined(stored)
            if together is not None:
                return together
        weight = torch.cat([_expanded(part) for part in parts])
        return quantise_groups(weight, self._bits)

    def rows(self, name: str, *shape: int) -> Rows:
        """A matrix in groups of integers if it is stored so and they are wanted."""
        if self._keeps_groups:
            grouped = self._weights.take_grouped(self._family.prefix + name, shape)
            if grouped is not None:
                self.num_parameters += grouped.codes.numel()
                return grouped.in_eight_bits() if self._quantisation == "int8" else grouped
        return self.tensor(name, *shape)

    def _parts(
        self,
        names: Sequence[str],
        sizes: Sequence[int],
        num_inputs: int,
        merged: str | None,
        *,
        bias: bool,
    ) -> tuple[list[Rows], list[Tensor]]:
        """Weights and biases of matrices with the same input, stored separately or as one."""
        if merged is not None:
            weight = self.rows(f"{merged}.weight", sum(sizes), num_inputs)
            biases = (
                torch.split(self.tensor(f"{merged}.bias", sum(sizes)), list(sizes)) if bias else ()
            )
            return list(weight.split(list(sizes))), list(biases)
        parts = list(zip(names, sizes, strict=True))
        return (
            [self.rows(f"{name}.weight", size, num_inputs) for name, size in parts],
            [self.tensor(f"{name}.bias", size) for name, size in parts] if bias else [],
        )

    def _ordered_rows(self, rows: Rows) -> Rows:
        if isinstance(rows, Tensor):
            return self._ordered(rows)
        return rows.rows(self._ordered(torch.arange(rows.shape[0])))

    def _ordered(self, rows: Tensor) -> Tensor:
        """Rows of all heads, of each head in the order that the rotary embedding needs."""
        return ordered_heads(rows, self._order, self._config.head_dim)

    def _take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        tensor = self._weights.take(self._family.prefix + name, shape)
        self.num_parameters += tensor.numel()
        return tensor


def _expanded(rows: Rows) -> Tensor:
    return rows if isinstance(rows, Tensor) else rows.expand()


def _halves(rows: Tensor) -> Tensor:
    """Rows that alternate between gates and values: first all gates, then all values."""
    return torch.cat((rows[0::2], rows[1::2]))
