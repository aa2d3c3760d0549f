"""Limits of one API key: requests a second, tokens a minute, concurrent requests.

Tokens are charged as they are generated: a key that has overdrawn is refused until the bucket
has refilled. The use at other gateways counts as well (`gateway.keys.shared_usage`).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from gateway.keys.key_file import Limits
from gateway.observability import metrics
from mesh.errors import ErrorKind, MeshError, invalid

CONCURRENT_RETRY_SECONDS = 1.0
"""`Retry-After` for a key at its concurrency limit: the end of its requests is unknown."""

MAX_DEBT_SECONDS = 3600.0
"""Longest time for which reports of other gateways can keep a key waiting: they may be wrong."""

SPREAD = 0.2
"""Largest random extension of a delay, so that clients do not retry at the same time."""


class KeyLimitReached(MeshError):
    """A limit of one key is reached, whatever the load of the server is (OVERLOADED)."""


class Bucket:
    """Token bucket: fills at `rate` a second up to `capacity`, and may be overdrawn."""

    def __init__(self, rate: float, capacity: float) -> None:
        self._rate = rate
        self._capacity = capacity
        self._level = capacity
        self._filled = time.monotonic()

    def seconds_until(self, amount: float) -> float:
        """Seconds until `amount` is available; 0 if it is."""
        return max(0.0, (amount - self._now()) / self._rate)

    def take(self, amount: float) -> None:
        """Take `amount`, also if it overdraws the bucket; a negative amount is a refund."""
        self._level = min(self._capacity, self._now() - amount)

    def take_late(self, amount: float) -> float:
        """Take what was used elsewhere, as far as the debt is then at most `MAX_DEBT_SECONDS`.

        Returns how much was taken.
        """
        taken = max(0.0, min(amount, self._now() + MAX_DEBT_SECONDS * self._rate))
        self._level -= taken
        return taken

    def _now(self) -> float:
        now = time.monotonic()
        self._level = min(self._capacity, self._level + (now - self._filled) * self._rate)
        self._filled = now
        return self._level


class KeyUsage(NamedTuple):
    """What a key uses at one gateway; the totals count from the start of the process."""

    name: str
    num_running: int = 0
    num_requests: int = 0
    num_tokens: int = 0


def _ignore() -> None:
    """Nothing follows the changes."""


class RateLimiter:
    """The limits of one key. Not thread-safe."""

    def __init__(self, limits: Limits, on_change: Callable[[], None] = _ignore) -> None:
        """`on_change` is called when a request begins or ends."""
        self.limits = limits
        self.num_running = 0
        self.num_requests = 0
        self.num_tokens = 0
        self._on_change = on_change
        self._elsewhere: dict[str, int] = {}
        """Running requests by gateway."""
        self._num_elsewhere = 0
        self._charged: dict[str, float] = {}
        """Tokens taken for the use at each gateway and not refunded."""
        self._requests: Bucket | None = None
        self._tokens: Bucket | None = None
        if (rate := limits.requests_per_second) is not None:
            self._requests = Bucket(rate, max(1.0, rate))
        if (tokens := limits.tokens_per_minute) is not None:
            self._tokens = Bucket(tokens / 60, tokens)

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count a request while the block runs. Raises MeshError (OVERLOADED) beyond a limit."""
        self._check()
        if self._requests is not None:
            self._requests.take(1)
        self.num_running += 1
        self.num_requests += 1
        token = _current.set(self)
        self._on_change()
        try:
            yield
        finally:
            _current.reset(token)
            self.num_running -= 1
            self._on_change()

    def spend(self, num_tokens: int) -> None:
        """Charge tokens to the key; negative if fewer were used than charged before."""
        if self._tokens is not None and num_tokens:
            self._tokens.take(num_tokens)
            self.num_tokens += num_tokens

    def used_elsewhere(self, gateway: str, before: KeyUsage, now: KeyUsage) -> None:
        """Count what changed at another gateway between two of its reports."""
        self._elsewhere[gateway] = now.num_running
        self._num_elsewhere = sum(self._elsewhere.values())
        if self._requests is not None:
            self._requests.take_late(max(0, now.num_requests - before.num_requests))
        if self._tokens is not None:
            charged = self._charged.get(gateway, 0.0)
            num_tokens = now.num_tokens - before.num_tokens
            if num_tokens >= 0:
                charged += self._tokens.take_late(num_tokens)
            else:  # a request may be charged less at its end than before
                refund = min(-num_tokens, charged)
                self._tokens.take(-refund)
                charged -= refund
            self._charged[gateway] = charged

    def forget(self, gateway: str) -> None:
        """The requests of another gateway do not count any more."""
        self._elsewhere.pop(gateway, None)
        self._charged.pop(gateway, None)
        self._num_elsewhere = sum(self._elsewhere.values())

    def continue_from(self, old: RateLimiter) -> None:
        """Take over the totals, and what is known of other gateways, of the limiter before this."""
        # Other gateways compare each total with the one before it.
        self.num_requests, self.num_tokens = old.num_requests, old.num_tokens
        self._elsewhere, self._num_elsewhere = old._elsewhere, old._num_elsewhere

    def _check(self) -> None:
        limits = self.limits
        num_running = self.num_running + self._num_elsewhere
        if limits.max_concurrent is not None and num_running >= limits.max_concurrent:
            _refuse(
                "max_concurrent",
                f"this key may run {limits.max_concurrent} requests at once",
                CONCURRENT_RETRY_SECONDS,
            )
        if self._requests is not None and (wait := self._requests.seconds_until(1)) > 0:
            rate = limits.requests_per_second
            _refuse("requests_per_second", f"this key may send {rate:g} requests a second", wait)
        if self._tokens is not None and (wait := self._tokens.seconds_until(1)) > 0:
            rate = limits.tokens_per_minute
            _refuse("tokens_per_minute", f"this key may use {rate:g} tokens a minute", wait)


_current: ContextVar[RateLimiter | None] = ContextVar("gateway_rate_limiter", default=None)


def check_priority(priority: int) -> None:
    """Raises MeshError (INVALID_REQUEST) for a lower priority than the request's key may have."""
    rate_limiter = _current.get()
    if rate_limiter is None or not priority < (least := rate_limiter.limits.min_priority or 0):
        return
    raise invalid("priority", f"priority must be at least {least} for this key, given {priority}")


class TokenCharge:
    """Charges the tokens of one request to its key as they become known."""

    def __init__(self) -> None:
        self._rate_limiter = _current.get()
        self._spent = 0

    def add(self, num_tokens: int) -> None:
        """Charge more tokens."""
        self.settle(self._spent + num_tokens)

    def settle(self, num_tokens: int) -> None:
        """Correct the charge to the total."""
        if self._rate_limiter is not None:
            self._rate_limiter.spend(num_tokens - self._spent)
        self._spent = num_tokens


def _refuse(limit: str, message: str, seconds: float) -> None:
    metrics.KEY_REFUSALS.labels(limit).inc()
    retry_after = seconds * random.uniform(1, 1 + SPREAD)
    raise KeyLimitReached(ErrorKind.OVERLOADED, message, retry_after=retry_after)
