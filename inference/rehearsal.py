"""Steps that no request asks for: to see what the largest takes, and to compile kernels."""

from __future__ import annotations

from collections.abc import Iterator

from inference.step import Step

_NUM_BEFORE = 128
"""Tokens before the rows of a short step: enough for its keys to be split."""


def full_step(num_tokens: int, max_context: int, block_size: int) -> Step:
    """Prompts of `num_tokens` together, each as long as may be, every row's logits wanted."""
    lengths = [max_context] * (num_tokens // max_context)
    if num_tokens % max_context:
        lengths.append(num_tokens % max_context)
    return _step([(0, length) for length in lengths], block_size)


def short_steps(max_context: int, block_size: int) -> Iterator[Step]:
    """One sequence with 1, 2, 4 … 64 rows, at its beginning and behind other tokens."""
    for num_rows in (1, 2, 4, 8, 16, 32, 64):
        for before in (0, _NUM_BEFORE):
            if before + num_rows <= max_context:
                yield _step([(before, before + num_rows)], block_size)


def _step(spans: list[tuple[int, int]], block_size: int) -> Step:
    """Rows at positions [begin, end) of a sequence for each span, in blocks of its own."""
    positions: list[int] = []
    begins = [0]
    tables: list[range] = []
    num_blocks = 0
    for begin, end in spans:
        positions += range(begin, end)
        begins.append(len(positions))
        tables.append(range(num_blocks, num_blocks - (-end // block_size)))
        num_blocks = tables[-1].stop
    return Step(
        token_ids=[0] * len(positions),
        positions=positions,
        begins=begins,
        block_tables=list(tables),
        outputs=list(range(len(positions))),
    )
