"""Spans of OpenTelemetry's API that cost a tenth of the SDK's to record.

The SDK samples, copies, locks and checks limits for each span. Here the spans that one request has
in this process share what is the same for all of them, each is an object with plain attributes, and
only a span that is exported, which few are, becomes a span of the SDK
(docs/decisions/0090).
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    Link,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
)
from opentelemetry.util.types import Attributes, AttributeValue

_random = random.Random()


class RecordedEvent(NamedTuple):
    """An event of a span; `timestamp` in ns since 1970."""

    name: str
    attributes: Attributes
    timestamp: int


class Traces(Protocol):
    """Where spans go when they end (`mesh.observability.recording.traces`)."""

    def ended(self, span: RecordedSpan) -> None:
        """Receive a span that has ended."""

    def settle(self, part: TracePart, *, keep: bool) -> None:
        """Decide whether a trace is kept."""

    def matters(self, outcome: object, slow: bool = False) -> bool:
        """Whether to keep the trace of a request with this outcome."""


class TracePart:
    """The part of a trace that one request has in this process: all of its spans here."""

    __slots__ = (
        "_hex_id",
        "decides",
        "flags",
        "held",
        "is_exported",
        "is_settled",
        "state",
        "trace_id",
        "traces",
    )

    def __init__(
        self,
        traces: Traces,
        trace_id: int,
        *,
        flags: int,
        state: TraceState,
        decides: bool = False,
    ) -> None:
        """`flags` and `state` are those of its spans' contexts (W3C Trace Context).

        `decides`: the trace entered Weir with this request, whose end decides if it is kept.
        """
        self.traces = traces
        self.trace_id = trace_id
        self.flags = flags
        self.state = state
        self.decides = decides
        self.is_exported = self.is_sampled
        """Whether it is decided that the spans are exported."""
        self.is_settled = self.is_exported
        """Whether it is decided if they are."""
        self.held: list[RecordedSpan] = []
        """The ended spans, while that is undecided; `Traces` adds and removes them."""
        self._hex_id = ""

    @property
    def hex_id(self) -> str:
        """The trace id as 32 hexadecimal digits."""
        if not self._hex_id:
            self._hex_id = f"{self.trace_id:032x}"
        return self._hex_id

    @property
    def is_sampled(self) -> bool:
        """Whether the sampler has decided at the beginning that the trace is exported."""
        return bool(self.flags & TraceFlags.SAMPLED)

    def settle(self, *, keep: bool) -> None:
        """Decide whether the spans are exported."""
        self.is_settled, self.is_exported = True, keep


class RecordedSpan(trace.Span):
    """A span that records."""

    __slots__ = (
        "_context",
        "_span_id",
        "attributes",
        "description",
        "end_time",
        "events",
        "is_entry",
        "kind",
        "links",
        "name",
        "parent",
        "part",
        "start_time",
        "status",
    )

    def __init__(
        self,
        name: str,
        part: TracePart,
        parent: RecordedSpan | SpanContext | None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        start_time: int | None = None,
    ) -> None:
        """Times are ns since 1970; `start_time` None: now."""
        self.name = name
        self.part = part
        self.parent = parent
        self.kind = kind
        self.attributes: dict[str, AttributeValue] = dict(attributes) if attributes else {}
        self.events: list[RecordedEvent] = []
        self.links: Sequence[Link] = ()
        self.start_time = start_time or time.time_ns()
        self.end_time: int | None = None
        self.status = StatusCode.UNSET
        self.description: str | None = None
        self.is_entry = False
        """Whether it is the first span of its part, whose end is the end of the request."""
        self._span_id = 0
        self._context: SpanContext | None = None

    def child(
        self,
        name: str,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        start_time: int | None = None,
    ) -> RecordedSpan:
        """A span of work inside this one."""
        return RecordedSpan(name, self.part, self, kind, attributes, start_time)

    @property
    def span_id(self) -> int:
        """Made when it is first asked for: most spans are never exported."""
        if not self._span_id:
            self._span_id = new_span_id()
        return self._span_id

    @property
    def needs_attributes(self) -> bool:
        """Whether the span may be exported; if not, attributes may be left out."""
        return self.part.is_exported or not self.part.is_settled

    def get_span_context(self) -> SpanContext:
        if self._context is None:
            part = self.part
            self._context = SpanContext(
                part.trace_id, self.span_id, False, TraceFlags(part.flags), part.state
            )
        return self._context

    def is_recording(self) -> bool:
        return self.end_time is None

    def set_attribute(self, key: str, value: AttributeValue) -> None:
        self.attributes[key] = value

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        self.attributes.update(attributes)

    def add_event(
        self, name: str, attributes: Attributes = None, timestamp: int | None = None
    ) -> None:
        self.events.append(RecordedEvent(name, attributes, timestamp or time.time_ns()))

    def update_name(self, name: str) -> None:
        self.name = name

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        if isinstance(status, Status):
            code, description = status.status_code, status.description
        else:
            code = status
        if self.status is StatusCode.OK or code is StatusCode.UNSET:
            return  # by the specification OK is final, and UNSET is ignored
        self.status = code
        self.description = description if code is StatusCode.ERROR else None

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        kind = type(exception)
        recorded = {"exception.type": f"{kind.__module__}.{kind.__qualname__}"}
        self.add_event("exception", {**recorded, **(attributes or {})}, timestamp)

    def end(self, end_time: int | None = None) -> None:
        if self.end_time is None:
            self.end_time = end_time or time.time_ns()
            self.part.traces.ended(self)

    def readable(self, resource: Resource, scope: InstrumentationScope) -> ReadableSpan:
        """The ended span as one of the SDK, for its processors and exporters."""
        return ReadableSpan(
            name=self.name,
            context=_sampled(self.get_span_context()),
            parent=self._readable_parent(),
            resource=resource,
            attributes=self.attributes,
            events=[Event(each.name, each.attributes, each.timestamp) for each in self.events],
            links=self.links,
            kind=self.kind,
            instrumentation_scope=scope,
            status=Status(self.status, self.description),
            start_time=self.start_time,
            end_time=self.end_time,
        )

    def _readable_parent(self) -> SpanContext | None:
        parent = self.parent
        context = parent.get_span_context() if isinstance(parent, RecordedSpan) else parent
        if context is None or self.part.is_sampled:
            return context
        return _sampled(context)


def new_trace_id() -> int:
    """128 random bits."""
    return _random.getrandbits(128) or 1


def new_span_id() -> int:
    """64 random bits."""
    return _random.getrandbits(64) or 1


def _sampled(context: SpanContext) -> SpanContext:
    """The context with the sampled flag, as an exported span has it also if it was held."""
    if context.trace_flags & TraceFlags.SAMPLED:
        return context
    flags = TraceFlags(context.trace_flags | TraceFlags.SAMPLED)
    return SpanContext(
        context.trace_id, context.span_id, context.is_remote, flags, context.trace_state
    )
