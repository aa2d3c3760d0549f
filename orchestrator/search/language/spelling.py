"""Finds the word that a misspelled one probably is, among known words.

The distance is that of optimal string alignment: the number of letters that are added, missing or
replaced, and of neighbours that are exchanged. The first letter must be right, as it almost always
is; so a scan of the words with that letter is enough.
"""

from __future__ import annotations

from collections.abc import Iterable

MIN_CHARACTERS = 5
"""Shorter words have too many neighbours that are other words."""

LONG_CHARACTERS = 9
"""From this length on a word may have two errors."""


def max_errors(word: str) -> int:
    """The errors that a word of this length may have."""
    if len(word) < MIN_CHARACTERS or not word.isalpha():
        return 0
    return 1 if len(word) < LONG_CHARACTERS else 2


def nearest(word: str, known: Iterable[tuple[str, int]]) -> str | None:
    """The known word with the fewest errors, and of those the most frequent one; None if too far.

    `known` has words with their frequencies.
    """
    most = max_errors(word)
    best: tuple[int, int, str] | None = None
    if not most:
        return None
    for other, frequency in known:
        if best:
            most = best[0]  # those with more errors than the best one do not matter
        if other[:1] != word[:1] or abs(len(other) - len(word)) > most:
            continue
        errors = distance(word, other, most)
        if errors is not None:
            best = min(best or (errors, -frequency, other), (errors, -frequency, other))
    return best[2] if best else None


def distance(one: str, other: str, most: int) -> int | None:
    """The number of errors between two words; None if there are more than `most`."""
    begin = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        begin += 1
    one, other = one[begin:], other[begin:]
    while one and other and one[-1] == other[-1]:
        one, other = one[:-1], other[:-1]
    # What remains of words with one error: a letter, or an exchanged pair.
    if most == 1 and max(len(one), len(other)) > 2:
        return None
    errors = _alignment(one, other, most)
    return errors if errors <= most else None


def _alignment(one: str, other: str, most: int) -> int:
    """The number of errors; if there are more than `most`, any number above it."""
    before: list[int] = []
    last = list(range(len(other) + 1))
    for row, a in enumerate(one, 1):
        current = [row]
        for column, b in enumerate(other, 1):
            errors = min(last[column] + 1, current[-1] + 1, last[column - 1] + (a != b))
            is_exchange = row > 1 and column > 1 and a == other[column - 2] and one[row - 2] == b
            if is_exchange:
                errors = min(errors, before[column - 2] + 1)
            current.append(errors)
        # The minimum of a row is at least that of the row before it.
        if (least := min(current)) > most:
            return least
        before, last = last, current
    return last[-1]
