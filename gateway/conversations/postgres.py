"""Responses in PostgreSQL, which all gateways share."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from typing import TypeVar

import asyncpg

from gateway.conversations.store import (
    MAX_CHUNKS,
    EventChunk,
    ResponseStore,
    StoredEvents,
    StoredResponse,
    StoreLimits,
    TrimSchedule,
    store_failed,
)

logger = logging.getLogger("gateway.conversations")

MAX_CONNECTIONS = 8
TIMEOUT_SECONDS = 5.0
"""Timeout in seconds of a connection attempt, and of a statement."""

TABLE = "weir_responses"
EVENTS = "weir_response_events"

SCHEMA = f"""
CREATE TABLE IF NOT EXISTS {TABLE} (
    id text PRIMARY KEY,
    owner text NOT NULL,
    status text NOT NULL,
    response bytea NOT NULL,
    items bytea NOT NULL,
    num_bytes bigint NOT NULL,
    created timestamptz NOT NULL,
    expires timestamptz NOT NULL,
    lease timestamptz NOT NULL
);
CREATE INDEX IF NOT EXISTS {TABLE}_owner ON {TABLE} (owner, created) INCLUDE (num_bytes);
CREATE INDEX IF NOT EXISTS {TABLE}_expires ON {TABLE} (expires);
CREATE TABLE IF NOT EXISTS {EVENTS} (
    id text NOT NULL REFERENCES {TABLE} ON DELETE CASCADE,
    first integer NOT NULL,
    "end" integer NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (id, first)
);
"""
"""Created by the first gateway, if its user may; otherwise create it before."""

_LOCK = 0x57656972
"""Advisory lock of the creation: concurrent CREATE TABLE IF NOT EXISTS fail in PostgreSQL."""

# The database's clock, because those of the gateways may differ.
_INSERT = f"""
INSERT INTO {TABLE} VALUES
($1, $2, $3, $4, $5, $6, clock_timestamp(), now() + make_interval(secs => $7),
 now() + make_interval(secs => $8))
"""
_RUNNING = "status IN ('queued', 'in_progress')"
_GET = f"""
SELECT status, response, items, {_RUNNING} AND lease < now() AS abandoned FROM {TABLE}
WHERE id = $1 AND owner = $2 AND expires > now()
"""
_FINISH = f"""
UPDATE {TABLE} SET status = $3, response = $4, items = $5, num_bytes = $6
 + coalesce((SELECT sum(octet_length(data)) FROM {EVENTS} AS e WHERE e.id = {TABLE}.id), 0)
WHERE id = $1 AND owner = $2 AND expires > now() AND {_RUNNING} RETURNING id
"""
_APPEND = f"""
WITH running AS (
    UPDATE {TABLE} SET num_bytes = num_bytes + octet_length($5::bytea)
    WHERE id = $1 AND owner = $2 AND expires > now() AND {_RUNNING} RETURNING id
)
INSERT INTO {EVENTS} SELECT id, $3, $4, $5 FROM running RETURNING id
"""
_STATE = f"""
SELECT {_RUNNING} AND lease >= now() AS running FROM {TABLE}
WHERE id = $1 AND owner = $2 AND expires > now()
"""
_EVENTS = f"""
SELECT first, "end", data FROM {EVENTS} WHERE id = $1 AND "end" > $2
ORDER BY first LIMIT {MAX_CHUNKS}
"""
_DELETE = f"DELETE FROM {TABLE} WHERE id = $1 AND owner = $2 AND expires > now() RETURNING id"
_RENEW = f"""
UPDATE {TABLE} SET lease = now() + make_interval(secs => $2)
WHERE id = ANY($1::text[]) AND {_RUNNING} RETURNING id
"""
_TRIM = f"""
DELETE FROM {TABLE} WHERE id IN (
    SELECT id FROM (
        SELECT id, sum(num_bytes) OVER (ORDER BY created DESC, id) AS total
        FROM {TABLE} WHERE owner = $1
    ) AS newest WHERE total > $2
)
"""
_FAILURES = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)

T = TypeVar("T")


class PostgresStore(ResponseStore):
    """Connections are opened at the first use: the database may start after this service."""

    def __init__(self, url: str, limits: StoreLimits) -> None:
        """Opens no connection."""
        self._limits = limits
        self._trims = TrimSchedule(limits.max_bytes)
        self._open_lock = asyncio.Lock()
        self._is_open = False
        self._pool = asyncpg.create_pool(
            url,
            min_size=0,
            max_size=MAX_CONNECTIONS,
            timeout=TIMEOUT_SECONDS,
            command_timeout=TIMEOUT_SECONDS,
        )

    async def put(self, stored: StoredResponse) -> None:
        contents = (stored.response, stored.items, stored.num_bytes)
        times = (self._limits.seconds, self._limits.lease_seconds)

        async def insert() -> None:
            await self._pool.execute(
                _INSERT, stored.id, stored.owner, stored.status, *contents, *times
            )
            if self._trims.is_due(stored.owner, stored.num_bytes):
                await self._pool.execute(_TRIM, stored.owner, self._limits.max_bytes)

        await self._run(insert)

    async def get(self, owner: str, id: str) -> StoredResponse | None:
        row = await self._run(lambda: self._pool.fetchrow(_GET, id, owner))
        return None if row is None else StoredResponse(id=id, owner=owner, **row)

    async def finish(self, stored: StoredResponse) -> bool:
        contents = (stored.status, stored.response, stored.items, stored.num_bytes)
        found = await self._run(
            lambda: self._pool.fetchval(_FINISH, stored.id, stored.owner, *contents)
        )
        return found is not None

    async def append_events(self, owner: str, id: str, chunk: EventChunk) -> bool:
        async def append() -> bool:
            added = await self._pool.fetchval(_APPEND, id, owner, *chunk)
            if self._trims.is_due(owner, len(chunk.data)):
                await self._pool.execute(_TRIM, owner, self._limits.max_bytes)
            return added is not None

        return await self._run(append)

    async def events(self, owner: str, id: str, begin: int) -> StoredEvents | None:
        async def read() -> StoredEvents | None:
            # The state first: after the end of a response no events are added.
            state = await self._pool.fetchrow(_STATE, id, owner)
            if state is None:
                return None
            rows = await self._pool.fetch(_EVENTS, id, begin)
            return StoredEvents(state["running"], [EventChunk(*row) for row in rows])

        return await self._run(read)

    async def delete(self, owner: str, id: str) -> bool:
        return await self._run(lambda: self._pool.fetchval(_DELETE, id, owner)) is not None

    async def renew(self, ids: Collection[str]) -> set[str]:
        lease = self._limits.lease_seconds
        rows = await self._run(lambda: self._pool.fetch(_RENEW, list(ids), lease))
        return {row["id"] for row in rows}

    async def sweep(self) -> None:
        statement = f"DELETE FROM {TABLE} WHERE expires <= now()"
        await self._run(lambda: self._pool.execute(statement))

    async def close(self) -> None:
        # close() would wait for running queries.
        self._pool.terminate()

    async def _run(self, statements: Callable[[], Awaitable[T]]) -> T:
        try:
            await self._open()
            return await statements()
        except _FAILURES as error:
            logger.error("store failed", extra={"error": f"{type(error).__name__}: {error}"})
            raise store_failed() from error

    async def _open(self) -> None:
        if self._is_open:
            return
        async with self._open_lock:
            if self._is_open:
                return
            await self._pool  # asyncpg forbids to open a pool concurrently
            async with self._pool.acquire() as connection, connection.transaction():
                await connection.execute(f"SELECT pg_advisory_xact_lock({_LOCK})")
                if await connection.fetchval("SELECT to_regclass($1)", EVENTS) is None:
                    await connection.execute(SCHEMA)
            self._is_open = True
