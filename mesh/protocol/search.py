"""Limits and defaults of a search, and what it finds."""

from __future__ import annotations

from typing import NamedTuple

MAX_QUERY_CHARACTERS = 500
MAX_RESULTS = 20
DEFAULT_RESULTS = 5
DEFAULT_SUMMARY_TOKENS = 256


class Source(NamedTuple):
    """A passage that was found, sanitized for display; citations refer to its position."""

    position: int
    """Its rank, from 1."""
    title: str
    url: str
    snippet: str
    """The whole passage; spans of citations are character offsets in it."""
    score: float
