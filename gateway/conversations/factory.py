"""The store that the settings select."""

from __future__ import annotations

from gateway.conversations.memory import MemoryStore
from gateway.conversations.sqlite import SqliteStore
from gateway.conversations.store import ResponseStore, StoreLimits
from gateway.settings import POSTGRES_STORE, SQLITE_STORE, GatewaySettings


def make_store(settings: GatewaySettings) -> ResponseStore:
    """Create the store that the settings select; opens no file and no connection."""
    value = settings.response_store.get_secret_value()
    limits = StoreLimits(
        seconds=settings.response_store_seconds, max_bytes=settings.response_store_bytes
    )
    if value.startswith(SQLITE_STORE):
        return SqliteStore(value.removeprefix(SQLITE_STORE), limits)
    if value.startswith(POSTGRES_STORE):
        # Imported here: the library is not needed, and takes a tenth of a second.
        from gateway.conversations.postgres import PostgresStore

        return PostgresStore(value, limits)
    return MemoryStore(limits)
