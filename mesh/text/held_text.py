"""Which end of a text must be held back because more text may complete a marker."""

from __future__ import annotations


def overlap(text: str, marker: str) -> int:
    """Length of the longest suffix of `text` that is a proper prefix of `marker`."""
    if not marker:
        return 0
    begin = text.find(marker[0], max(0, len(text) - len(marker) + 1))
    while begin >= 0:
        if marker.startswith(text[begin:]):
            return len(text) - begin
        begin = text.find(marker[0], begin + 1)
    return 0
