"""The valid API keys, reloaded when the key file changes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from gateway.keys.key_file import Key, KeyFileError, find_key, hash_key, read_keys
from gateway.keys.rate_limiter import KeyUsage, RateLimiter
from mesh.process.watched_files import WatchedFiles

logger = logging.getLogger("gateway.keys")

CHECK_SECONDS = 1.0
"""Interval of checks whether the key file changed."""


class Changes:
    """Names of the keys whose use has changed, for one follower."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self._some = asyncio.Event()

    def add(self, name: str) -> None:
        """A request of the key has begun or ended."""
        self.names.add(name)
        self._some.set()

    def take(self) -> set[str]:
        """The names so far, which are then forgotten."""
        names, self.names = self.names, set()
        self._some.clear()
        return names

    async def wait(self) -> None:
        """Wait until there are names."""
        if not self.names:
            await self._some.wait()


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
        self._by_name = {key.name: key for key in self._keys}
        self._rate_limiters: dict[str, RateLimiter] = {}
        self._followers: set[Changes] = set()

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
            rate_limiter = self._rate_limiters[key.name] = self._new_limiter(key, rate_limiter)
        return rate_limiter

    def rate_limiter_of(self, name: str) -> RateLimiter | None:
        """The rate limiter of the key with this name; None if there is no such key."""
        key = self._by_name.get(name)
        return None if key is None else self.rate_limiter(key)

    @contextmanager
    def changes(self) -> Iterator[Changes]:
        """Follows the changes of all keys inside the block."""
        changes = Changes()
        self._followers.add(changes)
        try:
            yield changes
        finally:
            self._followers.discard(changes)

    def used(self) -> set[str]:
        """Names of the keys with limits that have been used."""
        return {name for name, each in self._rate_limiters.items() if each.limits.any_use}

    def usage(self, name: str) -> KeyUsage | None:
        """What a key uses at this gateway; None if it has not been used or has no limits."""
        limiter = self._rate_limiters.get(name)
        if limiter is None or not limiter.limits.any_use:
            return None
        return KeyUsage(name, limiter.num_running, limiter.num_requests, limiter.num_tokens)

    def _new_limiter(self, key: Key, old: RateLimiter | None) -> RateLimiter:
        def on_change() -> None:
            for changes in self._followers:
                changes.add(key.name)

        made = RateLimiter(key.limits, *([on_change] if key.limits.any_use else []))
        if old is not None:
            made.continue_from(old)
            # Requests that run under the old limits are not counted against the new ones.
            logger.info("limits of a key changed", extra={"num_running": old.num_running})
        return made

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
        names = self._by_name = {key.name: key for key in self._keys}
        self._rate_limiters = {n: each for n, each in self._rate_limiters.items() if n in names}
        logger.info("keys reloaded", extra={"num_keys": len(keys)})
        return True

    async def watch(self) -> None:
        """Reload whenever the file is replaced, until cancelled."""
        while self._path:
            await asyncio.sleep(CHECK_SECONDS)
            self.reload()
