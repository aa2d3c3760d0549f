"""Finds the tokens that mark the quotable lines of a rendered prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from orchestrator.search.answering.constraint import NO_MARKS, LineMarks

FIRST_MARK, SECOND_MARK = "<|s0|>", "<|s1|>"
"""Tokens that a chat template inserts before the lines that end in a citation, in turn."""

NOTHING_FOUND_MARK = "<|none|>"

NUM_MARKS = 128

TokenId = Callable[[str], int | None]


def marks_lines(token_id: TokenId) -> bool:
    """Whether the vocabulary marks quotable lines: its model does nothing but quote them."""
    first, second = token_id(FIRST_MARK), token_id(SECOND_MARK)
    return first is not None and second == first + 1


def line_marks(token_ids: Sequence[int], num_lines: int, token_id: TokenId) -> LineMarks:
    """The marks of the `num_lines` sentences of the passages in a prompt.

    A query that ends in a citation has a mark as well, before and after the passages.
    """
    first = token_id(FIRST_MARK)
    if first is None or not marks_lines(token_id):
        return NO_MARKS
    marks = [number for number in token_ids if first <= number < first + NUM_MARKS]
    begin, odd = divmod(len(marks) - num_lines, 2)
    if begin not in (0, 1) or odd:
        return NO_MARKS
    return LineMarks(marks[begin : begin + num_lines], token_id(NOTHING_FOUND_MARK))
