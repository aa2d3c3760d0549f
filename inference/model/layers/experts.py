"""A mixture of experts: a router chooses a few of many feed-forwards for each token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from inference.model.config import ExpertConfig
from inference.model.layers.linear import Linear
from inference.model.layers.operations import Operations


class FeedForward:
    """A gated feed-forward: two merged matrices, of gates and of values, and one back."""

    def __init__(self, gate_up: Linear, down: Linear) -> None:
        self.gate_up = gate_up
        self.down = down

    def __call__(self, x: Tensor, operations: Operations) -> Tensor:
        """[num_tokens, hidden_size] to the same."""
        return operations.multiply(operations.multiply_gate(x, self.gate_up), self.down)


class SharedExpert:
    """The expert that computes all tokens, with a gate for each (Qwen2-MoE)."""

    def __init__(self, mlp: FeedForward, gate: Tensor) -> None:
        """`gate` [1, hidden_size]."""
        self._mlp = mlp
        self._gate = gate

    def __call__(self, x: Tensor, operations: Operations) -> Tensor:
        return torch.sigmoid(F.linear(x, self._gate)) * self._mlp(x, operations)


class Experts:
    """The sum of the chosen experts' outputs, weighted by the router.

    Tokens are computed by expert, in the order of the experts, so a token's sum does not depend on
    the batch. Which experts have tokens is decided on the host.
    """

    def __init__(
        self,
        router: Linear,
        experts: Sequence[FeedForward],
        shared: SharedExpert | None,
        config: ExpertConfig,
    ) -> None:
        self._router = router
        self._experts = experts
        self._shared = shared
        self._num_chosen = config.num_chosen
        self._normalises = config.normalises

    def __call__(self, x: Tensor, operations: Operations) -> Tensor:
        """[num_tokens, hidden_size] to the same."""
        shares, chosen = self._choose(x)
        output = torch.zeros_like(x)
        for number in torch.unique(chosen).tolist():
            tokens, place = torch.where(chosen == number)
            values = self._experts[number](x[tokens], operations)
            output.index_add_(0, tokens, (values * shares[tokens, place, None]).to(x.dtype))
        return output if self._shared is None else output + self._shared(x, operations)

    def _choose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and numbers of each token's experts, each [num_tokens, num_chosen]."""
        probabilities = torch.softmax(self._router(x).float(), dim=-1)
        shares, chosen = torch.topk(probabilities, self._num_chosen, dim=-1)
        if self._normalises:
            shares = shares / shares.sum(dim=-1, keepdim=True)
        return shares.to(x.dtype), chosen
