"""The responses of API keys: stored, continued, generated in the background, cancelled, deleted."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Sequence

from starlette.types import Message

from gateway.conversations.store import RUNNING, ResponseStore, StoredResponse
from gateway.http.drain import Drain
from gateway.http.errors import HttpError
from gateway.http.json_text import encode_line
from gateway.responses.background.event_log import EventLog
from gateway.responses.background.event_reader import EventReader, response_of
from gateway.responses.items import Json
from gateway.responses.run import Run
from gateway.streaming.cancel_scope import CancelScope
from mesh.errors import INTERNAL_MESSAGE, ErrorKind, MeshError, invalid

logger = logging.getLogger("gateway.responses")

RENEW_SECONDS = 1.0
"""Interval in which running responses are renewed, their events are stored, and cancellations of
other gateways seen."""

SWEEP_SECONDS = 60.0
"""Interval in which expired responses are removed."""

MAX_RUNS = 64
MAX_RUNS_PER_KEY = 16
"""Most responses that one gateway generates in the background, in all and for one API key."""

NO_ITEMS = b"[]"
"""The stored items of an empty conversation."""

_ID = re.compile("resp_[0-9a-f]{48}")


class KeptResponses:
    """The stored responses, and the runs in the background of this gateway."""

    def __init__(self, store: ResponseStore, drain: Drain, max_bytes: int) -> None:
        """`max_bytes`: a longer response is not stored."""
        self._store = store
        self._drain = drain
        self._max_bytes = max_bytes
        self._runs: dict[str, tuple[str, asyncio.Task[None]]] = {}
        self._logs: dict[str, EventLog] = {}
        """Of the runs that stream."""
        self._starting: list[str] = []
        """Owners of the runs that are being stored before they begin."""

    async def get(self, owner: str, id: str) -> StoredResponse | None:
        """A stored response; None if the id is unknown, expired, or another key's."""
        return await self._store.get(owner, id) if _ID.fullmatch(id) else None

    async def find(self, owner: str, id: str) -> StoredResponse:
        """The same. Raises HttpError (404)."""
        stored = await self.get(owner, id)
        if stored is None:
            raise _not_found(id)
        return stored

    async def keep(self, owner: str, run: Run, response: str, items: bytes) -> bool:
        """Store a complete response, given as JSON; `items` are those before its output.

        If that fails, the response is changed to say that it is not stored; returns False.
        """
        stored = _stored(owner, run, response, items)
        if stored.num_bytes <= self._max_bytes:
            try:
                await self._store.put(stored)
                return True
            except MeshError:
                pass  # the store has logged the reason
        else:
            logger.warning("response too long to be stored", extra={"limit": self._max_bytes})
        run.response.store = False
        return False

    async def start(self, owner: str, run: Run, items: bytes) -> str:
        """Generate a response in the background; returns the queued response as JSON.

        Raises MeshError.
        """
        self._check_number(owner)
        id, queued = run.response.id, run.response.encoded()
        log = EventLog(self._store, owner, id) if run.is_streamed else None
        if log is not None:
            log.append(run.queued())
        run.response.status = "in_progress"
        run.on_end = lambda response: self._check_length(owner, run, response, items)
        # Counted from here on: others start while the store writes.
        self._starting.append(owner)
        try:
            await self._store.put(_stored(owner, run, run.response.encoded(), items))
            if log is not None:
                await log.flush()  # other gateways recognise a stream by its first events
                self._logs[id] = log
            task = asyncio.create_task(self._finish(owner, run, items), name="background response")
            self._runs[id] = owner, task
        finally:
            self._starting.remove(owner)
        task.add_done_callback(lambda _: self._ended(id))
        return queued

    def _ended(self, id: str) -> None:
        self._runs.pop(id)
        log = self._logs.pop(id, None)
        if log is not None:
            log.wake()

    def _check_number(self, owner: str) -> None:
        owners = [*self._starting, *(each for each, _ in self._runs.values())]
        if len(owners) >= MAX_RUNS or owners.count(owner) >= MAX_RUNS_PER_KEY:
            raise MeshError(
                ErrorKind.OVERLOADED,
                f"at most {MAX_RUNS_PER_KEY} responses of a key, and {MAX_RUNS} in all, are "
                "generated in the background at once",
                retry_after=1.0,
            )

    async def reader(self, owner: str, id: str, begin: int) -> EventReader:
        """A reader of the events of a response from number `begin` on.

        Raises HttpError (404), or MeshError if the response has no events.
        """
        if self._log_of(owner, id) is None:
            await self.find(owner, id)
            found = await self._store.events(owner, id, 0)
            if found is None or not found.chunks:
                needed = "must be false for a response created without background and stream"
                raise invalid("stream", f"stream {needed}, given true")
        return EventReader(self._store, owner, id, begin, lambda: self._log_of(owner, id))

    def _log_of(self, owner: str, id: str) -> EventLog | None:
        run = self._runs.get(id)
        return self._logs.get(id) if run is not None and run[0] == owner else None

    async def cancel(self, owner: str, id: str) -> Json:
        """End a response in the background; returns it. Raises HttpError, 404 or 400."""
        stored = await self.find(owner, id)
        response = response_of(stored)
        if not response["background"]:
            message = "only a response that was created with background true can be cancelled"
            raise HttpError(400, message, code="not_cancellable")
        if stored.status not in RUNNING or stored.abandoned:
            return response
        response["status"] = "cancelled"
        changed = await self._store.finish(
            StoredResponse(
                id=id,
                owner=owner,
                status="cancelled",
                response=encode_line(response).encode(),
                items=stored.items,
            )
        )
        if not changed:
            return response_of(await self.find(owner, id))
        self._stop(id)
        return response

    async def delete(self, owner: str, id: str) -> None:
        """Remove a response, and end it if it is running. Raises HttpError (404)."""
        if not _ID.fullmatch(id) or not await self._store.delete(owner, id):
            raise _not_found(id)
        self._stop(id)

    async def watch(self) -> None:
        """Renew running responses and remove expired ones, until cancelled."""
        swept = time.monotonic()
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            # The next attempt has the events of one that fails.
            flushes = [log.flush() for log in self._logs.values()]
            await asyncio.gather(*flushes, return_exceptions=True)
            try:
                await self._renew()
                if time.monotonic() - swept >= SWEEP_SECONDS:
                    swept = time.monotonic()
                    await self._store.sweep()
            except MeshError:
                continue  # logged by the store; leases last for several attempts

    async def close(self) -> None:
        """End the runs that a drain has left, and close the store."""
        runs = [task for _, task in self._runs.values()]
        for task in runs:
            task.cancel()
        await asyncio.gather(*runs, return_exceptions=True)
        await self._store.close()

    async def _renew(self) -> None:
        ids = list(self._runs)
        if ids:
            for id in set(ids) - await self._store.renew(ids):
                self._stop(id)

    def _stop(self, id: str) -> None:
        if (run := self._runs.get(id)) is not None:
            run[1].cancel()

    async def _finish(self, owner: str, run: Run, items: bytes) -> None:
        """Run to the end, and store the result. Ends without a result when cancelled."""
        try:
            with self._drain:
                await self._generate(run)
                await self._save(owner, run, items)
        except MeshError as error:  # a drain has begun before the task
            self._record(run, run.failed(error))
            await self._save(owner, run, items)

    async def _generate(self, run: Run) -> None:
        try:
            async with CancelScope(_never, self._drain):
                async for frame in run.steps():
                    self._record(run, frame)
        except MeshError as error:
            self._record(run, run.failed(error))
        except Exception:
            logger.exception("unexpected error in the background")
            failure = MeshError(ErrorKind.INTERNAL, INTERNAL_MESSAGE)
            self._record(run, run.failed(failure))

    def _record(self, run: Run, frame: bytes) -> None:
        log = self._logs.get(run.response.id)
        if log is not None:
            log.append(frame)

    async def _check_length(self, owner: str, run: Run, response: str, items: bytes) -> bool:
        """A response that is too long to be stored has failed; returns False."""
        if _stored(owner, run, response, items).num_bytes <= self._max_bytes:
            return True
        run.response.output.clear()
        message = "the response is too long to be stored"
        run.response.fail(MeshError(ErrorKind.INTERNAL, message))
        return False

    async def _save(self, owner: str, run: Run, items: bytes) -> None:
        log = self._logs.get(run.response.id)
        try:
            if not await self._check_length(owner, run, run.result, items):
                run.result = run.response.encoded()
            if log is not None:
                await log.flush()
            await self._store.finish(_stored(owner, run, run.result, items))
        except MeshError as error:
            # The lease ends, and the response counts as failed.
            logger.error("background response lost", extra={"error": error.message})


async def _never() -> Message:
    """The `receive` of a run without a client."""
    await asyncio.Future[None]()
    raise AssertionError("a future without a result has ended")


def items_of(stored: StoredResponse) -> list[Json]:
    """The items of the conversation up to the response."""
    items: list[Json] = json.loads(stored.items)
    return items


def output_of(response: Json) -> list[Json]:
    """The output of a stored response object."""
    output = response["output"]
    assert isinstance(output, list), "as `ResponseObject.encoded` makes it"
    return output


def input_and_output(stored: StoredResponse) -> tuple[list[Json], list[Json]]:
    """The items that a response was generated from, and those of its output with all fields."""
    items = items_of(stored)
    for number, item in enumerate(items):
        item.setdefault("id", f"item_{stored.id.removeprefix('resp_')}{number}")  # of old stores
    num_given = len(items) - len(output_of(response_of(stored)))
    return items[:num_given], items[num_given:]


def with_items(items: bytes, more: Sequence[Json]) -> bytes:
    """Stored items, followed by more ones; the stored ones are not parsed."""
    if not more:
        return items
    added = encode_line(more).encode()
    return added if items == NO_ITEMS else b"%b,%b" % (items[:-1], added[1:])


def _stored(owner: str, run: Run, response: str, items: bytes) -> StoredResponse:
    """What is stored of a run; `response` is its response as JSON."""
    return StoredResponse(
        id=run.response.id,
        owner=owner,
        status=run.response.status,
        response=response.encode(),
        items=with_items(items, run.full_output),
    )


def _not_found(id: str) -> HttpError:
    message = f"Response with id {id[:80]!r} not found."
    return HttpError(404, message, code="not_found")
