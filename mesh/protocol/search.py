"""Limits and defaults of a search, and what it finds."""

from __future__ import annotations

from typing import NamedTuple

MAX_QUERY_CHARACTERS = 500
MAX_RESULTS = 20
DEFAULT_RESULTS = 5
DEFAULT_SUMMARY_TOKENS = 256
MAX_TURNS = 20
"""Maximum earlier questions of a conversation."""
MAX_TURN_CHARACTERS = 20_000
"""Maximum characters of the summary of an earlier question."""
MAX_SEARCHES = 5
DEFAULT_SEARCHES = 3
"""Maximum queries that a question of a conversation is split into."""
MAX_RELATED = 3
MAX_EXAMPLES = 10
DEFAULT_EXAMPLES = 6
"""Questions that the documents answer, for a page before the first search."""


class Source(NamedTuple):
    """A passage that was found, sanitized for display; citations refer to its position."""

    position: int
    """Its rank, from 1."""
    title: str
    url: str
    snippet: str
    """The whole passage; spans of citations are character offsets in it."""
    score: float
