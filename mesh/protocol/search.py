"""Limits and defaults of a search."""

from __future__ import annotations

MAX_QUERY_CHARACTERS = 500
MAX_RESULTS = 20
DEFAULT_RESULTS = 5
DEFAULT_SUMMARY_TOKENS = 256
