"""Steps that no request asks for: to see what the largest takes, and to compile kernels."""

from __future__ import annotations

from collections.abc import Iterator

from inference.runner.step import Step, pack

_NUM_BEFORE = 128
"""Tokens before the rows of a short step: enough for its keys to be split."""


def full_step(num_tokens: int, max_context: int, block_size: int) -> Step:
    """Prompts of `num_tokens` together, each as long as may be, every row's logits wanted."""
    lengths = [max_context] * (num_tokens // max_context)
    if num_tokens % max_context:
        lengths.append(num_tokens % max_context)
    return pack([(0, [0] * length) for length in lengths], block_size, outputs=True)


def short_steps(max_context: int, block_size: int) -> Iterator[Step]:
    """One sequence with 1, 2, 4 … 256 rows, at its beginning and behind other tokens."""
    for num_rows in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        for before in (0, _NUM_BEFORE):
            if before + num_rows <= max_context:
                yield pack([(before, [0] * num_rows)], block_size, outputs=True)
