"""Prints traces as waterfalls in a terminal.

GET /api/v1/search  ok  1.24 s  4bf92f3577b34da6a3ce929d0e0e4736
  gateway       GET /api/v1/search   ████████████████████████   1.24 s
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from mesh.observability import semconv
from scripts.traceview.spans import Row, Span, summarize, waterfall
from scripts.traceview.store import Store

QUIET_SECONDS = 1.0
"""Time without new spans after which a trace with a root span is printed."""

NAME_WIDTH = 46
BAR_WIDTH = 40

_RESET = "\x1b[0m"
_DIM = "\x1b[2m"
_COLORS = {"ok": "\x1b[32m", "cancelled": "\x1b[33m", "refused": "\x1b[33m", "invalid": "\x1b[33m"}
_BAD = "\x1b[31m"


def render(trace_id: str, spans: Sequence[Span], color: bool = False) -> str:
    """Renders the waterfall of a trace."""
    summary = summarize(trace_id, spans)
    start = min(span.start for span in spans)
    total = max(1, max(span.end for span in spans) - start)
    head = f"{summary.name}  {summary.outcome}  {duration(summary.duration)}  {trace_id}"
    rows = [_line(row, start, total, color) for row in waterfall(spans)]
    return "\n".join([_paint(head, summary.outcome, color), *rows, ""])


def duration(nanoseconds: int) -> str:
    """Formats a duration with three significant digits: `850 µs`, `12.3 ms`, `1.24 s`."""
    for unit, size in (("s", 1e9), ("ms", 1e6)):
        if nanoseconds >= size:
            value = nanoseconds / size
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"
    return f"{nanoseconds / 1e3:.0f} µs"


def _line(row: Row, start: int, total: int, color: bool) -> str:
    span = row.span
    name = f"{'  ' * row.depth}{span.name.rpartition('.')[2] if '/' in span.name else span.name}"
    if len(name) > NAME_WIDTH:
        name = name[: NAME_WIDTH - 1] + "…"
    left = min(BAR_WIDTH - 1, (span.start - start) * BAR_WIDTH // total)
    width = max(1, round((span.end - span.start) * BAR_WIDTH / total))
    bar = " " * left + "█" * min(width, BAR_WIDTH - left)
    for event in span.events:
        if event.name == semconv.FIRST_TOKEN:
            at = min(BAR_WIDTH - 1, max(0, (event.time - start) * BAR_WIDTH // total))
            bar = f"{bar:<{at}}"[:at] + "▏" + bar[at + 1 :]
    outcome = "" if span.outcome == "ok" else f"  {span.outcome} {span.message}".rstrip()
    service = f"{_DIM}{span.service:<13}{_RESET}" if color else f"{span.service:<13}"
    painted = _paint(f"{bar:<{BAR_WIDTH}}", span.outcome, color)
    taken = duration(span.end - span.start)
    return f"  {service} {name:<{NAME_WIDTH}} {painted} {taken:>8}{outcome}"


def _paint(text: str, outcome: str, color: bool) -> str:
    return f"{_COLORS.get(outcome, _BAD)}{text}{_RESET}" if color else text


class Printer:
    """Prints each trace of a store once, after its root span and `QUIET_SECONDS`."""

    def __init__(self, store: Store, write: Callable[[str], object], color: bool) -> None:
        self._store = store
        self._write = write
        self._color = color
        self._last_changes: dict[str, float] = {}
        self._printed: set[str] = set()
        self._lock = threading.Lock()
        store.on_change(self._changed)

    def _changed(self, trace_ids: set[str]) -> None:
        with self._lock:
            for trace_id in trace_ids - self._printed:
                self._last_changes[trace_id] = time.monotonic()

    def print_complete(self) -> None:
        """Prints the traces that are complete; call it periodically."""
        now = time.monotonic()
        with self._lock:
            changes = self._last_changes.items()
            quiet = [trace_id for trace_id, last in changes if now - last >= QUIET_SECONDS]
        for trace_id in quiet:
            spans = self._store.spans(trace_id)
            if spans and not summarize(trace_id, spans).complete:
                continue
            with self._lock:
                del self._last_changes[trace_id]
                self._printed.add(trace_id)
            if spans:
                self._write(render(trace_id, spans, self._color) + "\n")
