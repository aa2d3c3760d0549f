"""Steps for the profile run, which measures the largest step's memory, and for warm-up."""

from __future__ import annotations

from collections.abc import Iterator

from inference.runner.step import Step, pack

_NUM_BEFORE = 128
"""Tokens before the rows of a short step: enough that attention splits the keys."""


def full_step(num_tokens: int, max_context: int, block_size: int) -> Step:
    """The largest step: prompts of `num_tokens` in total, as long as possible, all with logits."""
    lengths = [max_context] * (num_tokens // max_context)
    if num_tokens % max_context:
        lengths.append(num_tokens % max_context)
    return pack([(0, [0] * length) for length in lengths], block_size, outputs=True)


def short_steps(max_context: int, block_size: int) -> Iterator[Step]:
    """Warm-up steps: a sequence with 1, 2, 4 … 256 rows, without and with tokens before them."""
    for num_rows in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        for before in (0, _NUM_BEFORE):
            if before + num_rows <= max_context:
                yield pack([(before, [0] * num_rows)], block_size, outputs=True)
