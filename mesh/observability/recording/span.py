"""Spans of OpenTelemetry's API that cost a tenth of the SDK's to record.

The SDK samples, copies, locks and checks limits for each span. Here a span is an object with plain
attributes, and becomes a span of the SDK when it is exported, which few are
(docs/decisions/0090).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.util.types import Attributes, AttributeValue

_random = random.Random()


class RecordedEvent(NamedTuple):
    """An event of a span; `timestamp` in ns since 1970."""

    name: str
    attributes: Attributes
    timestamp: int


class RecordedSpan(trace.Span):
    """A span that records. `ended` is called once, with the span, when it ends."""

    __slots__ = (
        "_context",
        "_ended",
        "attributes",
        "decides",
        "description",
        "end_time",
        "events",
        "keep",
        "kind",
        "links",
        "name",
        "parent",
        "start_time",
        "status",
    )

    def __init__(
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        ended: Callable[[RecordedSpan], object],
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        links: Sequence[Link] = (),
        start_time: int | None = None,
        decides: bool = False,
    ) -> None:
        """Times are ns since 1970; `start_time` None: now."""
        self.name = name
        self.parent = parent
        self.kind = kind
        self.attributes: dict[str, AttributeValue] = dict(attributes) if attributes else {}
        self.events: list[RecordedEvent] = []
        self.links = links
        self.start_time = start_time or time.time_ns()
        self.end_time: int | None = None
        self.status = StatusCode.UNSET
        self.description: str | None = None
        self.decides = decides
        """Whether its end decides if the trace is kept: the trace entered Weir with this span."""
        self.keep: bool | None = None
        """Of a span that decides: whether the trace is kept; None: by the span's outcome."""
        self._context = context
        self._ended = ended

    def get_span_context(self) -> SpanContext:
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
            self._ended(self)

    def readable(self, resource: Resource, scope: InstrumentationScope) -> ReadableSpan:
        """The ended span as one of the SDK, for its processors and exporters."""
        context, parent = self._context, self.parent
        if not context.trace_flags & TraceFlags.SAMPLED:  # kept at its end
            context = _sampled(context)
            parent = None if parent is None else _sampled(parent)
        return ReadableSpan(
            name=self.name,
            context=context,
            parent=parent,
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


def new_trace_id() -> int:
    """128 random bits."""
    return _random.getrandbits(128) or 1


def new_span_id() -> int:
    """64 random bits."""
    return _random.getrandbits(64) or 1


def _sampled(context: SpanContext) -> SpanContext:
    """The context with the sampled flag, as an exported span has it."""
    flags = TraceFlags(context.trace_flags | TraceFlags.SAMPLED)
    return SpanContext(
        context.trace_id, context.span_id, context.is_remote, flags, context.trace_state
    )
