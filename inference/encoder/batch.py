"""A batch of texts for one forward pass, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class EncoderInput(NamedTuple):
    """One text, or one pair of texts."""

    token_ids: Sequence[int]
    num_first_tokens: int
    """Number of first tokens whose type is 0; the others have type 1."""


class Batch(NamedTuple):
    """The tokens of several texts, one after the other; shorter texts first."""

    token_ids: list[int]
    """[num_tokens]"""
    positions: list[int]
    """[num_tokens] in each text, from 0."""
    types: list[int]
    """[num_tokens]"""
    begins: list[int]
    """[num_texts + 1] first token of each text, and the end."""
    order: list[int]
    """[num_texts] index of each text in the sequence that the batch was made of."""

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_texts(self) -> int:
        return len(self.order)


def make_batch(inputs: Sequence[EncoderInput]) -> Batch:
    """Sorted by length, so that attention can compute texts of equal length together."""
    order = sorted(range(len(inputs)), key=lambda index: len(inputs[index].token_ids))
    token_ids: list[int] = []
    positions: list[int] = []
    types: list[int] = []
    begins = [0]
    for index in order:
        ids, num_first = inputs[index]
        length = len(ids)
        token_ids += ids
        positions += range(length)
        types += [0] * min(num_first, length) + [1] * max(0, length - num_first)
        begins.append(len(token_ids))
    return Batch(token_ids, positions, types, begins, order)
