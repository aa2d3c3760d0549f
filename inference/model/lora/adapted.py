"""A LoRA adapter as sequences and steps hold it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from inference.engine.interface import AdapterInfo
from inference.model.layers.linear import Linear


class LowRank(NamedTuple):
    """What an adapter adds to a matrix: `up @ down`, in the activations' type."""

    down: Tensor
    """[rank, num_inputs]; the ranks of merged matrices add up."""
    up: Tensor
    """[num_outputs, rank]"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A loaded adapter. Sequences that use it hold it, so that unloading does not end them."""

    info: AdapterInfo
    root_hash: bytes = field(repr=False)
    """Separates its sequences' blocks in the prefix cache from others."""
    deltas: Mapping[Linear, LowRank] = field(repr=False)
