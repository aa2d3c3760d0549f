"""Responses in a SQLite file, which the gateways of one machine can share."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

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

BUSY_SECONDS = 5.0
"""Longest wait for another process that writes."""

RETRY_SECONDS = 0.02
"""Pause before another attempt to create the tables."""

_SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
PRAGMA foreign_keys = ON;
CREATE TABLE IF NOT EXISTS responses (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    status TEXT NOT NULL,
    response BLOB NOT NULL,
    items BLOB NOT NULL,
    num_bytes INTEGER NOT NULL,
    created REAL NOT NULL,
    expires REAL NOT NULL,
    lease REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS responses_owner ON responses (owner, created, num_bytes);
CREATE INDEX IF NOT EXISTS responses_expires ON responses (expires);
CREATE TABLE IF NOT EXISTS response_events (
    id TEXT NOT NULL REFERENCES responses ON DELETE CASCADE,
    first INTEGER NOT NULL,
    "end" INTEGER NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (id, first)
) WITHOUT ROWID;
"""
_RUNNING = "status IN ('queued', 'in_progress')"
_TRIM = """
DELETE FROM responses WHERE id IN (
    SELECT id FROM (
        SELECT id, sum(num_bytes) OVER (ORDER BY created DESC, id) AS total
        FROM responses WHERE owner = ?
    ) WHERE total > ?
)
"""

T = TypeVar("T")


class SqliteStore(ResponseStore):
    """All statements run in one thread, which owns the connection."""

    def __init__(self, path: str, limits: StoreLimits) -> None:
        """Opens the file at the first use."""
        self._path = path
        self._limits = limits
        self._trims = TrimSchedule(limits.max_bytes)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="responses")
        self._connection: sqlite3.Connection | None = None

    async def put(self, stored: StoredResponse) -> None:
        now = time.time()
        row = (
            *(stored.id, stored.owner, stored.status, stored.response, stored.items),
            *(stored.num_bytes, now, now + self._limits.seconds, now + self._limits.lease_seconds),
        )
        trims = self._trims.is_due(stored.owner, stored.num_bytes)

        def insert(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT INTO responses VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
            if trims:
                connection.execute(_TRIM, (stored.owner, self._limits.max_bytes))

        await self._run(insert)

    async def get(self, owner: str, id: str) -> StoredResponse | None:
        now = time.time()
        query = (
            f"SELECT status, response, items, {_RUNNING} AND lease < ? FROM responses "
            "WHERE id = ? AND owner = ? AND expires > ?"
        )
        row = await self._run(lambda c: c.execute(query, (now, id, owner, now)).fetchone())
        if row is None:
            return None
        status, response, items, abandoned = row
        return StoredResponse(
            id=id,
            owner=owner,
            status=status,
            response=response,
            items=items,
            abandoned=bool(abandoned),
        )

    async def finish(self, stored: StoredResponse) -> bool:
        update = (
            "UPDATE responses SET status = ?, response = ?, items = ?, num_bytes = ? + coalesce("
            "(SELECT sum(length(data)) FROM response_events AS e WHERE e.id = responses.id), 0) "
            f"WHERE id = ? AND owner = ? AND expires > ? AND {_RUNNING}"
        )
        values = (
            *(stored.status, stored.response, stored.items, stored.num_bytes),
            *(stored.id, stored.owner, time.time()),
        )
        return await self._run(lambda c: c.execute(update, values).rowcount) > 0

    async def append_events(self, owner: str, id: str, chunk: EventChunk) -> bool:
        size = len(chunk.data)
        trims = self._trims.is_due(owner, size)
        count = (
            "UPDATE responses SET num_bytes = num_bytes + ? "
            f"WHERE id = ? AND owner = ? AND expires > ? AND {_RUNNING}"
        )

        def append(connection: sqlite3.Connection) -> bool:
            if not connection.execute(count, (size, id, owner, time.time())).rowcount:
                return False
            connection.execute("INSERT INTO response_events VALUES (?, ?, ?, ?)", (id, *chunk))
            if trims:
                connection.execute(_TRIM, (owner, self._limits.max_bytes))
            return True

        return await self._run(append)

    async def events(self, owner: str, id: str, begin: int) -> StoredEvents | None:
        now = time.time()
        state = (
            f"SELECT {_RUNNING} AND lease >= ? FROM responses "
            "WHERE id = ? AND owner = ? AND expires > ?"
        )
        newer = (
            'SELECT first, "end", data FROM response_events '
            f'WHERE id = ? AND "end" > ? ORDER BY first LIMIT {MAX_CHUNKS}'
        )

        def read(connection: sqlite3.Connection) -> StoredEvents | None:
            row = connection.execute(state, (now, id, owner, now)).fetchone()
            if row is None:
                return None
            chunks = connection.execute(newer, (id, begin)).fetchall()
            return StoredEvents(bool(row[0]), [EventChunk(*chunk) for chunk in chunks])

        return await self._run(read)

    async def delete(self, owner: str, id: str) -> bool:
        statement = "DELETE FROM responses WHERE id = ? AND owner = ? AND expires > ?"
        values = (id, owner, time.time())
        return await self._run(lambda c: c.execute(statement, values).rowcount) > 0

    async def renew(self, ids: Collection[str]) -> set[str]:
        marks = ", ".join("?" * len(ids))
        update = f"UPDATE responses SET lease = ? WHERE id IN ({marks}) AND {_RUNNING} RETURNING id"
        values = (time.time() + self._limits.lease_seconds, *ids)
        return {id for (id,) in await self._run(lambda c: c.execute(update, values).fetchall())}

    async def sweep(self) -> None:
        statement = "DELETE FROM responses WHERE expires <= ?"
        await self._run(lambda c: c.execute(statement, (time.time(),)))

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, connection.close)
        self._thread.shutdown(wait=False)

    async def _run(self, statements: Callable[[sqlite3.Connection], T]) -> T:
        """Run statements in one transaction."""

        def run() -> T:
            connection = self._open()
            with connection:
                return statements(connection)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, run)
        except sqlite3.Error as error:
            logger.error("store failed", extra={"error": str(error)})
            raise store_failed() from error

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            connection = sqlite3.connect(self._path, BUSY_SECONDS, check_same_thread=False)
            _create_tables(connection)
            self._connection = connection
        return self._connection


def _create_tables(connection: sqlite3.Connection) -> None:
    """Create the tables. Raises sqlite3.Error."""
    # SQLite does not wait for the lock when the journal's mode changes, as gateways may start at
    # the same time.
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.executescript(_SCHEMA)
            return
        except sqlite3.OperationalError:
            if time.monotonic() >= until:
                raise
            time.sleep(RETRY_SECONDS)
