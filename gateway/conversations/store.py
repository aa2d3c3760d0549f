"""The interface of the stores, and what they have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mesh.errors import ErrorKind, MeshError

ENTRY_BYTES = 1024
"""Counted for each response beside its contents."""

LEASE_SECONDS = 15.0
"""Time after which a running response counts as abandoned if its gateway does not renew it."""

RUNNING = ("queued", "in_progress")
"""Statuses of a response that is not complete."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredResponse:
    """A response and its conversation, as JSON."""

    id: str
    owner: str
    """The API key that made the response, hashed; empty without keys."""
    status: str
    response: bytes
    """The response object."""
    items: bytes
    """The items of the whole conversation: earlier ones, the input and the output."""
    abandoned: bool = False
    """In a result of `get`: it was running, and its gateway has stopped."""

    @property
    def num_bytes(self) -> int:
        """Bytes that count towards the owner's limit."""
        return len(self.response) + len(self.items) + ENTRY_BYTES


class EventChunk(NamedTuple):
    """Consecutive events of a response's stream."""

    first: int
    """Number of the first event."""
    end: int
    """Number of the event after the last one."""
    data: bytes


MAX_CHUNKS = 16
"""Most chunks in one result of `events`."""


class StoredEvents(NamedTuple):
    """The next events of a response's stream."""

    is_running: bool
    """Whether more events may follow those in the store."""
    chunks: Sequence[EventChunk]
    """At most `MAX_CHUNKS`, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreLimits:
    """Bounds of a store."""

    seconds: float
    """Time for which a response is kept."""
    max_bytes: int
    """Most bytes of one owner; beyond it the oldest responses are removed."""
    lease_seconds: float = LEASE_SECONDS


class ResponseStore(ABC):
    """Keeps responses. Every method raises MeshError (UNAVAILABLE) if the store fails.

    An id of another owner is treated as unknown.
    """

    @abstractmethod
    async def put(self, stored: StoredResponse) -> None:
        """Add a response, and remove the owner's oldest ones if they exceed the limit."""

    @abstractmethod
    async def get(self, owner: str, id: str) -> StoredResponse | None:
        """Return a response that has not expired."""

    @abstractmethod
    async def finish(self, stored: StoredResponse) -> bool:
        """Replace a running response; False, and no change, if it is complete or gone."""

    @abstractmethod
    async def append_events(self, owner: str, id: str, chunk: EventChunk) -> bool:
        """Add the next events of a running response; False, and no change, if it does not run."""

    @abstractmethod
    async def events(self, owner: str, id: str, begin: int) -> StoredEvents | None:
        """Return the chunks with events from number `begin` on; None if there is no response."""

    @abstractmethod
    async def delete(self, owner: str, id: str) -> bool:
        """Remove a response and its events; False if there is none."""

    @abstractmethod
    async def renew(self, ids: Collection[str]) -> set[str]:
        """Extend the leases of running responses; returns those that are still running."""

    @abstractmethod
    async def sweep(self) -> None:
        """Remove expired responses; called from time to time."""

    @abstractmethod
    async def close(self) -> None:
        """Release the connections."""


class TrimSchedule:
    """When a database checks the limit of an owner: after each sixteenth of the limit.

    The check reads the sizes of all responses of the owner, which is too much for every response.
    """

    def __init__(self, max_bytes: int) -> None:
        self._step = max_bytes // 16
        self._added: dict[str, int] = {}

    def is_due(self, owner: str, num_bytes: int) -> bool:
        """Count the bytes of a new response; whether the limit is to be checked now."""
        added = self._added.get(owner, self._step) + num_bytes
        self._added[owner] = 0 if added >= self._step else added
        return added >= self._step


def store_failed() -> MeshError:
    """The error for clients; the cause is in the log."""
    return MeshError(
        ErrorKind.UNAVAILABLE, "the store of responses cannot be reached", retry_after=1.0
    )
