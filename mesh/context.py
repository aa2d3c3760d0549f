"""What belongs to the request being worked on, carried by a ContextVar from hop to hop."""

from __future__ import annotations

import math
import os
import re
import time
from contextvars import ContextVar
from dataclasses import dataclass, field

REQUEST_ID_METADATA = "x-request-id"
FIRST_TOKEN_METADATA = "x-weir-first-token-timeout"
"""Seconds that are left until the first token must be there."""
IDLE_METADATA = "x-weir-idle-timeout"
"""Most seconds between two tokens."""
KEY_NAME_METADATA = "x-weir-key-name"
"""Whose request it is: the name of the API key, never the key."""

DEADLINE_TOLERANCE_SECONDS = 0.05
"""The caller's clock runs first: its cancellation may come this long before our own deadline."""

_VALID_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


@dataclass(slots=True, kw_only=True)
class RequestContext:
    """One request, as this process sees it."""

    request_id: str
    deadline: float | None = None
    """By `time.monotonic()`; None: no end."""
    first_token_deadline: float | None = None
    """By `time.monotonic()`, for the first token of an answer; None: only `deadline` counts."""
    idle_timeout: float | None = None
    """Most seconds between two tokens; None: only `deadline` counts."""
    key_name: str = ""
    """Name of the API key that the request came with; empty: none was asked for."""
    fields: dict[str, object] = field(default_factory=dict)
    """What the request's one access line will say beside status and duration."""

    def remaining(self) -> float | None:
        """Seconds until the deadline, at least 0; None without one."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    @property
    def out_of_time(self) -> bool:
        """Whether a cancellation that comes now is the deadline's."""
        remaining = self.remaining()
        return remaining is not None and remaining <= DEADLINE_TOLERANCE_SECONDS


_VALID_KEY_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

_current: ContextVar[RequestContext | None] = ContextVar("mesh_request", default=None)


def current_request() -> RequestContext | None:
    """The request being worked on, or None outside of one."""
    return _current.get()


def annotate(**fields: object) -> None:
    """Adds fields to the access line of the request being worked on, if there is one."""
    request = _current.get()
    if request is not None:
        request.fields.update(fields)


class use_request:
    """Makes `request` the current one inside the block."""

    __slots__ = ("_request", "_token")

    def __init__(self, request: RequestContext) -> None:
        self._request = request

    def __enter__(self) -> RequestContext:
        self._token = _current.set(self._request)
        return self._request

    def __exit__(self, *_: object) -> None:
        _current.reset(self._token)


def new_request_id() -> str:
    """A fresh id; 32 hexadecimal digits."""
    return os.urandom(16).hex()


def accept_request_id(given: str | None) -> str:
    """The caller's own id where it is fit for headers, logs and metadata, else a fresh one."""
    if given is not None and _VALID_REQUEST_ID.fullmatch(given):
        return given
    return new_request_id()


def is_key_name(name: str) -> bool:
    """Whether a key may be called so: letters, digits, `_` and `-`, at most 64."""
    return _VALID_KEY_NAME.fullmatch(name) is not None


def seconds_of(given: str | None) -> float | None:
    """A duration in metadata; None if there is none or it is not one."""
    if not given:
        return None
    try:
        seconds = float(given)
    except ValueError:
        return None
    return seconds if 0 <= seconds < math.inf else None
