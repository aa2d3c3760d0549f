"""How many tokens a step with prompts computes: as many as its target duration allows."""

from __future__ import annotations

TARGET_STEP_SECONDS = 0.2
"""Default of the target duration of a step."""

MIN_PROMPT_TOKENS = 128
"""Least prompt tokens of a step. A CPU computes smaller chunks less efficiently, and a long prompt
would exceed the timeout of its first token."""

ALONE_FACTOR = 5.0
"""A step of the only sequence may take this multiple of the target: a new sequence waits for it."""

MIN_ALONE_TOKENS = 512
"""Least budget of a step of the only sequence; larger chunks are not computed faster on a CPU."""

SMOOTHING = 0.5
"""Weight of the newest step in the moving average of the speed."""


class Speed:
    """Moving average of the time for each token of a step."""

    def __init__(self, seconds_per_token: float | None, smoothing: float) -> None:
        """`seconds_per_token` is assumed before the first measurement; None: that one is taken."""
        self._seconds_per_token = seconds_per_token
        self._smoothing = smoothing

    def record(self, num_tokens: int, seconds: float) -> None:
        """Record a step of `num_tokens` > 0."""
        newest = seconds / num_tokens
        if self._seconds_per_token is None:
            self._seconds_per_token = newest
        else:
            self._seconds_per_token += self._smoothing * (newest - self._seconds_per_token)

    def num_tokens(self, seconds: float) -> int | None:
        """The tokens that a step computes in this time; None if no step was measured."""
        return int(seconds / self._seconds_per_token) if self._seconds_per_token else None


class PrefillBudget:
    """Tokens of prompts in a step. The caller measures the times."""

    def __init__(self, max_tokens: int, target_seconds: float) -> None:
        """`max_tokens` limits every step. `target_seconds` 0: nothing else does."""
        self._max_tokens = max_tokens
        self._target_seconds = target_seconds
        self._speed = Speed(None, SMOOTHING)

    def num_tokens(self, num_decodes: int, *, alone: bool) -> int:
        """Prompt tokens of the next step beside `num_decodes`; `alone`: no other work waits."""
        most = self._max_tokens - num_decodes
        if not self._target_seconds:
            return most
        seconds, least = self._target_seconds, MIN_PROMPT_TOKENS
        if alone:
            seconds, least = ALONE_FACTOR * seconds, MIN_ALONE_TOKENS
        wanted = self._speed.num_tokens(seconds) or 0
        return min(max(wanted - num_decodes, least), most)

    def record(self, num_tokens: int, seconds: float) -> None:
        """Record a step with prompts. A short one is ignored: it is mostly overhead."""
        if seconds > 0 and num_tokens >= min(MIN_PROMPT_TOKENS, self._max_tokens):
            self._speed.record(num_tokens, seconds)
