"""The owner of what a request stores: its API key."""

from __future__ import annotations

from starlette.types import Scope

from gateway.keys.key_file import Key

_KEY = "gateway.keys.owner"


def set_owner(scope: Scope, key: Key) -> None:
    """Record the key of an authenticated request."""
    # The hash, not the name: names of keys from the settings are positions in a list.
    scope[_KEY] = key.sha256.hex()


def owner_of(scope: Scope) -> str:
    """The key of the request, hashed; empty if no keys are required."""
    owner: str = scope.get(_KEY, "")
    return owner
