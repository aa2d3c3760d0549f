"""What the view knows of a span and of a trace; no protobuf, no HTTP."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mesh.observability import semconv

Value = str | bool | int | float | list["Value"] | None


class Event(NamedTuple):
    """Something that happened while a span was open; `time` is in nanoseconds since 1970."""

    name: str
    time: int
    attributes: dict[str, Value]


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One span. Ids are hexadecimal, times are nanoseconds since 1970."""

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
    """The traces that it links to."""

    @property
    def outcome(self) -> str:
        """How it ended, in our words, or as far as its status tells."""
        told = self.attributes.get(semconv.OUTCOME)
        if isinstance(told, str):
            return told
        return "failed" if self.failed else "ok"


class Row(NamedTuple):
    """A line of a waterfall."""

    span: Span
    depth: int


def waterfall(spans: Iterable[Span]) -> list[Row]:
    """The spans of a trace as a tree, each below its parent, siblings by their start.

    A span whose parent is missing, because it is still open or was lost, is a root.
    """
    ordered = sorted(spans, key=lambda span: (span.start, -span.end))
    known = {span.span_id for span in ordered}
    children: dict[str, list[Span]] = {}
    for span in ordered:
        parent = span.parent_id if span.parent_id in known else ""
        children.setdefault(parent, []).append(span)
    return list(_below("", children, 0, set()))


def _below(
    parent: str, children: dict[str, list[Span]], depth: int, seen: set[str]
) -> Iterator[Row]:
    for span in children.get(parent, ()):
        if span.span_id not in seen:  # whoever sends spans may send a circle
            seen.add(span.span_id)
            yield Row(span, depth)
            yield from _below(span.span_id, children, depth + 1, seen)


class Summary(NamedTuple):
    """A trace in a line."""

    trace_id: str
    name: str
    service: str
    start: int
    duration: int
    outcome: str
    failed: bool
    num_spans: int
    complete: bool
    """Whether the span is here that all others hang from."""


def summarize(trace_id: str, spans: Sequence[Span]) -> Summary:
    """What a list of traces says of this one."""
    start, end = min(s.start for s in spans), max(s.end for s in spans)
    top = next((span for span in spans if not span.parent_id), None)
    shown = top or min(spans, key=lambda span: span.start)
    return Summary(
        trace_id=trace_id,
        name=shown.name,
        service=shown.service,
        start=start,
        duration=end - start if top is None else top.end - top.start,
        outcome=shown.outcome if top is not None else "open",
        failed=shown.failed,
        num_spans=len(spans),
        complete=top is not None,
    )
