"""A LoRA adapter as sequences and steps hold it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from inference.engine.interface import AdapterInfo


class AdaptedLayer(NamedTuple):
    """Keys of a layer's matrices that adapters can add to; None for one that they cannot."""

    qkv: Hashable
    out: Hashable
    gate_up: Hashable | None
    down: Hashable | None


class LowRank(NamedTuple):
    """What an adapter adds to a matrix: `up @ down`, in the activations' type."""

    down: Tensor
    """[rank, num_inputs]; the ranks of merged matrices add up."""
    up: Tensor
    """[num_outputs, rank]"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, weakref_slot=True)
class Adapter:
    """A loaded adapter. Sequences that use it hold it, so that unloading does not end them."""

    info: AdapterInfo
    root_hash: bytes = field(repr=False)
    """Separates its sequences' blocks in the prefix cache from others."""
    deltas: Mapping[Hashable, LowRank] = field(repr=False)
