"""The tracer: spans as the SDK makes them, and the decision about each trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
)

from mesh.observability import semconv
from mesh.observability.recording import span as span_module
from mesh.observability.recording.span import RecordedSpan
from mesh.observability.recording.tracer import HELD_STATE, RecordingProvider
from mesh.observability.semconv import Outcome

RESOURCE = Resource({"service.name": "bakery"})
SCOPE = InstrumentationScope("weir", "1", "schema")


class Recording:
    """A provider and what it exports."""

    def __init__(self, sampler: Sampler, *, holds: bool) -> None:
        self.exporter = InMemorySpanExporter()
        processors = [SimpleSpanProcessor(self.exporter)]
        self.provider = RecordingProvider(RESOURCE, sampler, processors, SCOPE, holds=holds)
        self.tracer = self.provider.get_tracer("t")
        self.kept: list[int] = []
        self.provider.traces.on_kept = self.kept.append

    @property
    def names(self) -> list[str]:
        return [span.name for span in self.exporter.get_finished_spans()]


@pytest.fixture
def holding() -> Iterator[Recording]:
    """Samples nothing, and holds the spans."""
    recording = Recording(ParentBased(ALWAYS_OFF), holds=True)
    yield recording
    assert recording.provider.traces.num_held == 0, "every trace of these tests is decided"


def remote(flags: int, state: TraceState | None = None) -> Context:
    """The context of a caller in another process."""
    ids = SpanContext(7, 8, is_remote=True, trace_flags=TraceFlags(flags), trace_state=state)
    return trace.set_span_in_context(NonRecordingSpan(ids), Context())


def make_spans(tracer: trace.Tracer) -> None:
    """Uses everything of the API that the services use."""
    link = Link(SpanContext(1, 2, is_remote=False), {"a": 1})
    with tracer.start_as_current_span(
        "bake",
        kind=SpanKind.SERVER,
        attributes={"loaves": 3, "kinds": ["rye", "oat"], "hot": True},
        links=[link],
    ) as span:
        span.set_attribute("degrees", 220.5)
        span.set_attributes({"loaves": 4, "oven": "left"})
        span.add_event("warm", {"degrees": 100}, timestamp=5)
        with tracer.start_as_current_span("knead"):
            pass
        child = tracer.start_span("rise", start_time=10)
        child.update_name("rise twice")
        child.set_status(Status(StatusCode.ERROR, "flat"))
        child.set_status(StatusCode.UNSET)
        child.end(20)
        assert not child.is_recording()
        child.end(30)
    with pytest.raises(KeyError), tracer.start_as_current_span("burn"):
        raise KeyError("smoke")


def without_ids(span: ReadableSpan) -> dict[str, object]:
    return {
        "name": span.name,
        "kind": span.kind,
        "attributes": dict(span.attributes or {}),
        "events": [(each.name, sorted(each.attributes or {})) for each in span.events],
        "links": [(each.context, dict(each.attributes or {})) for each in span.links],
        "status": span.status.status_code,
        "description": span.status.description if span.name != "burn" else None,
        "has_parent": span.parent is not None,
        "scope": span.instrumentation_scope,
        "resource": span.resource,
    }


def test_spans_are_those_of_the_sdk() -> None:
    """The exported spans are equal to the SDK's, except for the texts of exceptions."""
    reference = InMemorySpanExporter()
    sdk = TracerProvider(resource=RESOURCE, sampler=ALWAYS_ON)
    sdk.add_span_processor(SimpleSpanProcessor(reference))
    make_spans(sdk.get_tracer("weir", "1", "schema"))
    own = Recording(ALWAYS_ON, holds=False)
    make_spans(own.tracer)
    expected = [without_ids(span) for span in reference.get_finished_spans()]
    found = [without_ids(span) for span in own.exporter.get_finished_spans()]
    for each in expected + found:
        # Messages and stack traces of exceptions may quote a request, and are not recorded.
        each["events"] = [
            (name, [key for key in keys if not key.startswith("exception.")])
            for name, keys in each["events"]  # type: ignore[attr-defined]
        ]
        for value in ("kinds",):
            attributes = each["attributes"]
            assert isinstance(attributes, dict)
            if value in attributes:
                attributes[value] = list(attributes[value])
    assert found == expected
    knead, rise, bake, burn = own.exporter.get_finished_spans()
    assert knead.parent == rise.parent == bake.context
    assert len({knead.context.trace_id, rise.context.trace_id, bake.context.trace_id}) == 1
    assert burn.context.trace_id != bake.context.trace_id
    assert (rise.start_time, rise.end_time) == (10, 20)


@pytest.mark.parametrize(
    ("outcome", "kept"),
    [
        (Outcome.OK, False),
        (Outcome.CANCELLED, False),
        (Outcome.INVALID, False),
        (Outcome.FAILED, True),
        (Outcome.DEADLINE, True),
        (Outcome.FAILED_OVER, True),
        (Outcome.REFUSED, True),
    ],
)
def test_a_trace_is_kept_by_its_outcome(holding: Recording, outcome: Outcome, kept: bool) -> None:
    """Its spans are exported at the end of the request, sampled, or forgotten."""
    with holding.tracer.start_as_current_span("request") as request:
        with holding.tracer.start_as_current_span("work"):
            assert holding.names == []
        request.set_attribute(semconv.OUTCOME, outcome)
    assert holding.names == (["work", "request"] if kept else [])
    trace_id = request.get_span_context().trace_id
    assert holding.kept == ([trace_id] if kept else [])
    for span in holding.exporter.get_finished_spans():
        assert span.context.trace_flags.sampled
        assert span.context.trace_id == trace_id


def test_a_span_that_ends_after_the_request_is_exported(holding: Recording) -> None:
    """Such as the client span of a call that was cancelled."""
    with holding.tracer.start_as_current_span("request") as request:
        late = holding.tracer.start_span("late")
        request.set_attribute(semconv.OUTCOME, Outcome.FAILED)
    late.end()
    assert holding.names == ["request", "late"]


def test_requests_of_one_trace_are_decided_one_by_one(holding: Recording) -> None:
    """A client may give several requests the same `traceparent`."""
    caller = trace.get_current_span(remote(0)).get_span_context()
    good, bad = (holding.tracer.begin(name, caller) for name in ("good", "bad"))
    for request in (good, bad):
        assert isinstance(request, RecordedSpan)
        request.child("work").end()
    bad.set_attribute(semconv.OUTCOME, Outcome.FAILED)
    good.end()
    bad.end()
    assert holding.names == ["work", "bad"]
    assert holding.kept == [7]


def test_a_dropped_trace_costs_nothing_of_the_sdk(
    holding: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No context, id or span of OpenTelemetry is made for a span that is never exported."""
    made: list[str] = []
    for name in ("SpanContext", "ReadableSpan", "new_span_id"):
        monkeypatch.setattr(span_module, name, lambda *args, name=name, **kw: made.append(name))
    with holding.tracer.start_as_current_span("request"):
        for _ in range(3):
            with holding.tracer.start_as_current_span("work") as work:
                work.set_attribute("weir.outcome", "ok")
    assert made == []


def test_the_caller_in_weir_decides(holding: Recording) -> None:
    """A called service holds its spans, whatever their outcome, until the caller's decision."""
    failed = {semconv.OUTCOME: Outcome.FAILED}
    holding.tracer.start_span("call", remote(0, HELD_STATE), attributes=failed).end()
    assert holding.names == []
    holding.provider.traces.keep(7)
    assert holding.names == ["call"]
    assert holding.kept == [], "only the process that decides passes the decision on"


@pytest.mark.parametrize(
    ("context", "recorded", "state"),
    [
        (Context(), True, {"weir": "held"}),
        (remote(0), True, {"weir": "held"}),
        (remote(0, TraceState([("shop", "3")])), True, {"weir": "held", "shop": "3"}),
        (remote(1, TraceState([("shop", "3")])), True, {"shop": "3"}),
    ],
)
def test_the_decision_is_propagated(
    holding: Recording, context: Context, recorded: bool, state: dict[str, str]
) -> None:
    """In tracestate, beside what the caller has there; a sampled trace needs no mark."""
    span = holding.tracer.start_span("request", context)
    assert span.is_recording() is recorded
    assert dict(span.get_span_context().trace_state) == state
    span.end()
    forced = holding.tracer.begin(
        "r", trace.get_current_span(context).get_span_context(), force=True
    )
    assert forced.get_span_context().trace_flags.sampled
    forced.end()


@pytest.mark.parametrize("make", [Context, lambda: remote(0)])
def test_other_samplers_record_what_they_sample(make: Callable[[], Context]) -> None:
    """Without holding, a trace that is not sampled costs nothing."""
    recording = Recording(ParentBased(ALWAYS_OFF), holds=False)
    span = recording.tracer.start_span("request", make())
    assert not span.is_recording()
    span.end()
    parent = trace.get_current_span(make()).get_span_context()
    recording.tracer.begin("forced", parent, force=True).end()
    assert recording.names == ["forced"]
