"""Spans, and traces as trees and summaries; without protobuf and HTTP."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mesh.observability import semconv

Value = str | bool | int | float | list["Value"] | None


class Event(NamedTuple):
    """A span event; `time` is in nanoseconds since the Unix epoch."""

    name: str
    time: int
    attributes: dict[str, Value]


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One span. Ids are hexadecimal, times are nanoseconds since the Unix epoch."""

    service: str
    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: str
    start: int
    end: int
    failed: bool
    message: str
    attributes: dict[str, Value]
    events: tuple[Event, ...]
    links: tuple[str, ...]
    """Ids of the linked traces."""

    @property
    def outcome(self) -> str:
        """The value of `weir.outcome`, or `ok` or `failed` from the span's status."""
        outcome = self.attributes.get(semconv.OUTCOME)
        if isinstance(outcome, str):
            return outcome
        return "failed" if self.failed else "ok"


class Row(NamedTuple):
    """A row of a waterfall."""

    span: Span
    depth: int
    """Number of ancestors."""
    self_time: int
    """Nanoseconds of the span in which none of its children is open."""


def waterfall(spans: Iterable[Span]) -> list[Row]:
    """Orders the spans of a trace as a tree: children after their parent, siblings by start.

    A span whose parent is missing, because it is not finished or was lost, is a root.
    """
    ordered = sorted(spans, key=lambda span: (span.start, -span.end))
    known = {span.span_id for span in ordered}
    children: dict[str, list[Span]] = {}
    for span in ordered:
        parent = span.parent_id if span.parent_id in known else ""
        children.setdefault(parent, []).append(span)
    return list(_descendants("", children, 0, set()))


def _descendants(
    parent: str, children: dict[str, list[Span]], depth: int, seen: set[str]
) -> Iterator[Row]:
    for span in children.get(parent, ()):
        if span.span_id not in seen:  # received parent ids may form a cycle
            seen.add(span.span_id)
            yield Row(span, depth, _self_time(span, children.get(span.span_id, ())))
            yield from _descendants(span.span_id, children, depth + 1, seen)


def _self_time(span: Span, children: Iterable[Span]) -> int:
    """`children` in the order of their starts; they may overlap and exceed the span."""
    covered, reached = 0, span.start
    for child in children:
        begin, end = max(child.start, reached), min(child.end, span.end)
        if end > begin:
            covered += end - begin
            reached = end
    return span.end - span.start - covered


class Summary(NamedTuple):
    """A trace as an entry of the list."""

    trace_id: str
    name: str
    service: str
    start: int
    duration: int
    outcome: str
    failed: bool
    num_spans: int
    complete: bool
    """Whether the root span has been received."""
    num_failovers: int
    """How often the request continued on another replica."""


def summarize(trace_id: str, spans: Sequence[Span]) -> Summary:
    """Summarizes a trace: by its root span, or by its first span without a root."""
    start, end = min(s.start for s in spans), max(s.end for s in spans)
    root = next((span for span in spans if not span.parent_id), None)
    shown = root or min(spans, key=lambda span: span.start)
    return Summary(
        trace_id=trace_id,
        name=shown.name,
        service=shown.service,
        start=start,
        duration=end - start if root is None else root.end - root.start,
        outcome=shown.outcome if root is not None else "open",
        failed=shown.failed,
        num_spans=len(spans),
        complete=root is not None,
        num_failovers=sum(e.name == semconv.FAILOVER for s in spans for e in s.events),
    )


def text_of(trace_id: str, spans: Iterable[Span]) -> str:
    """What a search for text looks at, in lower case: ids, names, messages, `attribute=value`."""
    found = {trace_id}
    for span in spans:
        found |= {span.service, span.name, span.message, span.outcome}
        found |= {f"{name}={value}" for name, value in span.attributes.items()}
        for event in span.events:
            found.add(event.name)
            found |= {f"{name}={value}" for name, value in event.attributes.items()}
    return "\n".join(found).lower()
