"""Context of the current request: id, deadlines, key name and fields of its access line.

It is held in a ContextVar and passed to other services as gRPC metadata.
"""

from __future__ import annotations

import math
import os
import re
import time
from contextvars import ContextVar
from dataclasses import dataclass, field

REQUEST_ID_METADATA = "x-request-id"
FIRST_TOKEN_METADATA = "x-weir-first-token-timeout"
"""Remaining seconds until the first token must arrive."""
IDLE_METADATA = "x-weir-idle-timeout"
"""Maximum seconds between two tokens."""
KEY_NAME_METADATA = "x-weir-key-name"
"""Name of the API key of the request; never the key itself."""

DEADLINE_TOLERANCE_SECONDS = 0.05
"""A cancellation this long before the deadline still counts as the deadline: the caller's own
timer started earlier."""

_VALID_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


@dataclass(slots=True, kw_only=True)
class RequestContext:
    """A request in this process."""

    request_id: str
    deadline: float | None = None
    """Absolute, in `time.monotonic()`; None: no deadline."""
    first_token_deadline: float | None = None
    """Absolute, for the first token, in `time.monotonic()`; None: only `deadline` applies."""
    idle_timeout: float | None = None
    """Maximum seconds between two tokens; None: only `deadline` applies."""
    key_name: str = ""
    """Name of the request's API key; empty if the gateway requires no keys."""
    fields: dict[str, object] = field(default_factory=dict)
    """Additional fields of the request's access line."""

    def remaining(self) -> float | None:
        """Seconds until the deadline, at least 0; None without one."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    @property
    def out_of_time(self) -> bool:
        """Whether the deadline is the cause of a cancellation at this moment."""
        remaining = self.remaining()
        return remaining is not None and remaining <= DEADLINE_TOLERANCE_SECONDS


_VALID_KEY_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

_current: ContextVar[RequestContext | None] = ContextVar("mesh_request", default=None)


def current_request() -> RequestContext | None:
    """The current request, or None outside of one."""
    return _current.get()


def annotate(**fields: object) -> None:
    """Add fields to the access line of the current request, if there is one."""
    request = _current.get()
    if request is not None:
        request.fields.update(fields)


class use_request:
    """Makes `request` current inside the block."""

    __slots__ = ("_request", "_token")

    def __init__(self, request: RequestContext) -> None:
        self._request = request

    def __enter__(self) -> RequestContext:
        self._token = _current.set(self._request)
        return self._request

    def __exit__(self, *_: object) -> None:
        _current.reset(self._token)


def new_request_id() -> str:
    """A new id: 32 hexadecimal digits."""
    return os.urandom(16).hex()


def accept_request_id(given: str | None) -> str:
    """The caller's id if it is valid in headers, logs and metadata, else a new one."""
    if given is not None and _VALID_REQUEST_ID.fullmatch(given):
        return given
    return new_request_id()


def is_key_name(name: str) -> bool:
    """Whether `name` is valid: 1 to 64 letters, digits, `_` and `-`."""
    return _VALID_KEY_NAME.fullmatch(name) is not None


def seconds_of(given: str | None) -> float | None:
    """Parse a duration in metadata; None if it is missing or invalid."""
    if not given:
        return None
    try:
        seconds = float(given)
    except ValueError:
        return None
    return seconds if 0 <= seconds < math.inf else None
