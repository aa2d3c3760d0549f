"""How much of the engine's time embeddings get: short pieces, and a third of it under load."""

from __future__ import annotations

import math

from inference.scheduler.prefill_budget import Speed

PIECE_SECONDS = 0.005
"""Time that a piece should take: a new sequence waits at most for the piece in progress."""

SLOWEST_FACTOR = 1.25
"""A piece may take this multiple of the shortest one if that takes longer than `PIECE_SECONDS`. On
a GPU a forward pass takes about the same time for 32 tokens and for hundreds."""

MIN_PIECE_TOKENS = 32
"""Least budget of a piece. On a slow machine a smaller one would mostly read the weights."""

GENERATION_SHARE = 2.0
"""Time of generation steps after each piece, as a multiple of the piece's, while sequences run."""

SMOOTHING = 0.3
"""Weight of the newest piece in the moving average of the speed."""


class Pace:
    """Decides when the next piece may run, and its size. The caller measures the times."""

    def __init__(self, max_tokens: int) -> None:
        """`max_tokens` is the token budget of a step."""
        self._max_tokens = max_tokens
        self._speed = Speed(PIECE_SECONDS / MIN_PIECE_TOKENS, SMOOTHING)
        self._least_seconds = math.inf
        self._owed_seconds = 0.0

    @property
    def num_tokens(self) -> int:
        """Token budget of the next piece."""
        seconds = PIECE_SECONDS
        if self._least_seconds < math.inf:
            seconds = max(seconds, SLOWEST_FACTOR * self._least_seconds)
        wanted = self._speed.num_tokens(seconds) or 0
        return min(max(wanted, MIN_PIECE_TOKENS), self._max_tokens)

    def is_due(self, *, generating: bool) -> bool:
        """Whether a piece may run now; `generating`: sequences run beside it."""
        return not generating or self._owed_seconds <= 0

    def generated(self, seconds: float) -> None:
        """Record a generation step."""
        self._owed_seconds -= seconds

    def computed(self, num_tokens: int, seconds: float) -> None:
        """Record a piece."""
        self._owed_seconds = GENERATION_SHARE * seconds
        if num_tokens >= min(MIN_PIECE_TOKENS, self._max_tokens):  # else it is mostly overhead
            self._least_seconds = min(self._least_seconds, seconds)
            self._speed.record(num_tokens, seconds)
