"""The current span of a task.

OpenTelemetry holds it in a dictionary that is copied for every span. The services use one library
that looks for it there, in `unary_spans`, so it has a context variable, which costs a tenth.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar, Token

from opentelemetry.trace import INVALID_SPAN, Span

_current: ContextVar[Span] = ContextVar("weir_span", default=INVALID_SPAN)

current_span: Callable[[], Span] = _current.get
"""The current span; INVALID_SPAN outside of one."""

make_current: Callable[[Span], Token[Span]] = _current.set
"""Makes a span current until `restore_current` is called with what this returns."""

restore_current: Callable[[Token[Span]], None] = _current.reset


class CurrentSpan:
    """Makes a span current inside the block, and leaves its end to others."""

    __slots__ = ("_span", "_token")

    def __init__(self, span: Span) -> None:
        self._span = span

    def __enter__(self) -> Span:
        self._token = make_current(self._span)
        return self._span

    def __exit__(self, *_: object) -> None:
        restore_current(self._token)
