"""API keys: the key file, and the command that creates a key.

    python -m gateway.keys new alice --file keys.toml

The file is TOML with a table for each key:

    [alice]
    sha256 = "9f86d081…"        # of the key; the key itself is not stored
    requests_per_second = 5     # each limit is optional
    tokens_per_minute = 60000   # of prompt and completion
    max_concurrent = 8
    min_priority = -10          # lowest value of `priority`; 0 without it

Unsalted SHA-256 is sufficient, unlike for passwords: a key is 256 random bits, so there is
nothing to guess, and a slow hash would only delay each request.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import secrets
import sys
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mesh.context import is_key_name
from mesh.protocol.sampling_params import BOUNDS

PREFIX = "weir_"
"""Prefix by which secret scanners recognise a leaked key."""

_HEX_DIGITS = 64


class KeyFileError(Exception):
    """The key file is invalid; the message gives the reason without quoting the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of one key; None means unlimited."""

    requests_per_second: float | None = None
    tokens_per_minute: float | None = None
    """Prompt and completion together."""
    max_concurrent: int | None = None
    min_priority: int | None = None
    """Lowest `priority` of a request; None: 0."""

    @property
    def any_use(self) -> bool:
        """Whether the key's use is limited."""
        limits = (self.requests_per_second, self.tokens_per_minute, self.max_concurrent)
        return any(limit is not None for limit in limits)


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key's name, hash and limits."""

    name: str
    sha256: bytes
    limits: Limits = NO_LIMITS


def hash_key(key: str) -> bytes:
    """Return the SHA-256 of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def find_key(keys: Iterable[Key], given: str) -> Key | None:
    """Return the key that matches `given`. Compares with every key, each in constant time."""
    digest = hash_key(given)
    found: Key | None = None
    for key in keys:
        if hmac.compare_digest(digest, key.sha256):
            found = key
    return found


def read_keys(path: str) -> tuple[Key, ...]:
    """Read the keys of a file. Raises KeyFileError."""
    try:
        tables = tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise KeyFileError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise KeyFileError(f"{path} is not TOML: {type(error).__name__}") from None
    keys = tuple(_key(name, table) for name, table in tables.items())
    hashes = {key.sha256 for key in keys}
    if len(hashes) < len(keys):
        raise KeyFileError("two keys have the same sha256")
    return keys


def _key(name: str, table: object) -> Key:
    if not is_key_name(name) or not isinstance(table, dict):
        raise KeyFileError(
            "each entry must be a table named with letters, digits, _ and -, at most 64"
        )
    fields = dict(table)
    text = fields.pop("sha256", None)
    if not isinstance(text, str) or len(text) != _HEX_DIGITS:
        raise KeyFileError(f"[{name}] sha256 must be {_HEX_DIGITS} hexadecimal digits")
    try:
        digest = bytes.fromhex(text)
    except ValueError:
        raise KeyFileError(f"[{name}] sha256 must be hexadecimal") from None
    limits = Limits(
        requests_per_second=_limit(name, fields, "requests_per_second"),
        tokens_per_minute=_limit(name, fields, "tokens_per_minute"),
        max_concurrent=_whole(name, fields, "max_concurrent"),
        min_priority=_priority(name, fields),
    )
    if fields:
        raise KeyFileError(f"[{name}] has unknown fields: {', '.join(sorted(fields))}")
    return Key(name=name, sha256=digest, limits=limits)


def _limit(name: str, fields: dict[str, object], field: str) -> float | None:
    value = fields.pop(field, None)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e12:
        raise KeyFileError(f"[{name}] {field} must be a number above 0")
    return float(value)


def _whole(name: str, fields: dict[str, object], field: str) -> int | None:
    value = _limit(name, fields, field)
    if value is None:
        return None
    if value != int(value):
        raise KeyFileError(f"[{name}] {field} must be a whole number")
    return int(value)


def _priority(name: str, fields: dict[str, object]) -> int | None:
    value = fields.pop("min_priority", None)
    if value is None:
        return None
    bounds = BOUNDS["priority"]
    if isinstance(value, bool) or not isinstance(value, int) or not bounds.allow(value):
        raise KeyFileError(f"[{name}] min_priority must be a whole number {bounds.limit}")
    return value


def new_key() -> str:
    """Return a new key of 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def entry(name: str, key: str, limits: Limits = NO_LIMITS) -> str:
    """Return a key's table in the key file."""
    lines = [f"[{name}]", f'sha256 = "{hash_key(key).hex()}"']
    for field in Limits.__slots__:
        value = getattr(limits, field)
        if value is not None:
            lines.append(f"{field} = {value:g}")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m gateway.keys new NAME`: prints the key once, to standard output."""
    parser = argparse.ArgumentParser("python -m gateway.keys", description="Create API keys.")
    commands = parser.add_subparsers(required=True)
    new = commands.add_parser("new", help="create a key and print it once")
    new.add_argument("name", help="name of the key: letters, digits, _ and -")
    new.add_argument(
        "--file", type=Path, help="key file to add the key to; without it the entry is printed"
    )
    new.add_argument("--requests-per-second", type=float)
    new.add_argument("--tokens-per-minute", type=float)
    new.add_argument("--max-concurrent", type=int)
    new.add_argument("--min-priority", type=int)
    given = parser.parse_args(argv)
    if not is_key_name(given.name):
        parser.error("NAME must be letters, digits, _ and -, at most 64")
    limits = Limits(
        requests_per_second=given.requests_per_second,
        tokens_per_minute=given.tokens_per_minute,
        max_concurrent=given.max_concurrent,
        min_priority=given.min_priority,
    )
    key = new_key()
    table = entry(given.name, key, limits)
    try:
        _key(given.name, tomllib.loads(table)[given.name])  # validates the limits
        if given.file is not None:
            _append(given.file, given.name, table)
    except KeyFileError as error:
        parser.error(str(error))
    if given.file is None:
        print(f"Add this to the key file:\n\n{table}", file=sys.stderr)
    print(key)
    return 0


def _append(path: Path, name: str, table: str) -> None:
    """Append a table to the file, readable by its owner only. Raises KeyFileError."""
    if path.exists() and path.stat().st_size:
        if any(key.name == name for key in read_keys(str(path))):
            raise KeyFileError(f"{path} has a key named {name!r} already")
        table = f"\n{table}"
    else:
        path.touch(mode=0o600)
    with path.open("a") as file:
        file.write(table)


if __name__ == "__main__":
    sys.exit(main())
