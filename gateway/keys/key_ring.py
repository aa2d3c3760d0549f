"""The valid API keys, reloaded when the key file changes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from gateway.keys.key_file import Key, KeyFileError, Limits, find_key, hash_key, read_keys
from gateway.keys.rate_limiter import RateLimiter
from mesh.process.watched_files import WatchedFiles

logger = logging.getLogger("gateway.keys")

CHECK_SECONDS = 1.0
"""Interval of checks whether the key file changed."""


class KeyRing:
    """Keys from a file, which may change, and keys from the settings."""

    def __init__(self, path: str, plain: Sequence[str]) -> None:
        """An empty `path` means no file. Raises KeyFileError."""
        self._path = path
        self._files = WatchedFiles([path] if path else [])
        # Only hashes are stored.
        self._plain = tuple(
            Key(name=f"env-{number}", sha256=hash_key(key)) for number, key in enumerate(plain, 1)
        )
        self._keys = self._plain + (read_keys(path) if path else ())
        self._rate_limiters: dict[str, RateLimiter] = {}

    @property
    def required(self) -> bool:
        """Whether requests need a key."""
        return bool(self._path or self._plain)

    def find(self, given: str) -> Key | None:
        """Return the key that matches `given`, if any."""
        return find_key(self._keys, given)

    def rate_limiter(self, key: Key) -> RateLimiter:
        """Return the rate limiter of this key."""
        rate_limiter = self._rate_limiters.get(key.name)
        if rate_limiter is None or rate_limiter.limits != key.limits:
            rate_limiter = self._rate_limiters[key.name] = _changed(rate_limiter, key.limits)
        return rate_limiter

    def reload(self) -> bool:
        """Reload the file if it was replaced; an invalid file is logged and ignored."""
        if not self._files.changed():
            return False
        try:
            keys = read_keys(self._path)
        except KeyFileError as error:
            logger.error("key file is invalid, keys are unchanged", extra={"error": str(error)})
            return False
        self._keys = self._plain + keys
        names = {key.name for key in self._keys}
        self._rate_limiters = {n: each for n, each in self._rate_limiters.items() if n in names}
        logger.info("keys reloaded", extra={"num_keys": len(keys)})
        return True

    async def watch(self) -> None:
        """Reload whenever the file is replaced, until cancelled."""
        while self._path:
            await asyncio.sleep(CHECK_SECONDS)
            self.reload()


def _changed(rate_limiter: RateLimiter | None, limits: Limits) -> RateLimiter:
    made = RateLimiter(limits)
    if rate_limiter is not None:
        # Requests that run under the old limits are not counted against the new ones.
        logger.info("limits of a key changed", extra={"num_running": rate_limiter.num_running})
    return made
