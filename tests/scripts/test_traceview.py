"""The trace viewer: receiving, storing and showing spans."""

from __future__ import annotations

import gzip
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, Status, StatusCode

from scripts.traceview.otlp import grpc_receiver
from scripts.traceview.spans import Event, Span, summarize, waterfall
from scripts.traceview.store import MAX_SPANS, Store
from scripts.traceview.terminal import Printer, duration, render
from scripts.traceview.web import web_server

TRACE = "1" * 32


def span(name: str, start: int, end: int, *, parent: str = "", **other: object) -> Span:
    """A span with times in milliseconds, whose id is its name."""
    fields: dict[str, object] = {
        "service": "gateway",
        "trace_id": TRACE,
        "span_id": name,
        "parent_id": parent,
        "name": name,
        "kind": "internal",
        "start": start * 1_000_000,
        "end": end * 1_000_000,
        "failed": False,
        "message": "",
        "attributes": {},
        "events": (),
        "links": (),
        **other,
    }
    return Span(**fields)  # type: ignore[arg-type]


@pytest.fixture
def store() -> Store:
    return Store(keep=3)


@pytest.fixture
def exported() -> Iterator[tuple[TracerProvider, InMemorySpanExporter]]:
    """A tracer provider, and the exporter that collects its spans."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource({"service.name": "bakery"}))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider, exporter
    provider.shutdown()


def make_spans(provider: TracerProvider) -> str:
    """Records a failed server span with an event, and a child; returns their trace id."""
    tracer = provider.get_tracer("t")
    with tracer.start_as_current_span("bake", kind=SpanKind.SERVER) as parent:
        parent.set_attributes({"bread.num_loaves": 3, "bread.kinds": ["rye", "<b>"]})
        parent.add_event("oven hot", {"degrees": 220.5})
        parent.set_status(Status(StatusCode.ERROR, "burnt"))
        with tracer.start_as_current_span("knead"):
            pass
    return f"{parent.get_span_context().trace_id:032x}"


def test_spans_are_received_over_grpc(store: Store) -> None:
    """From the OTLP exporter that the services use."""
    with grpc_receiver("127.0.0.1:0", store.add) as port:
        provider = TracerProvider(resource=Resource({"service.name": "bakery"}))
        exporter = OTLPSpanExporter(endpoint=f"http://127.0.0.1:{port}", insecure=True)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        trace_id = make_spans(provider)
        provider.shutdown()
    rows = waterfall(store.spans(trace_id))
    assert [(row.span.name, row.depth) for row in rows] == [("bake", 0), ("knead", 1)]
    bake = rows[0].span
    assert (bake.service, bake.kind, bake.outcome, bake.message) == (
        *("bakery", "server", "failed", "burnt"),
    )
    assert bake.attributes == {"bread.num_loaves": 3, "bread.kinds": ["rye", "<b>"]}
    assert [(event.name, event.attributes) for event in bake.events] == [
        ("oven hot", {"degrees": 220.5})
    ]


@pytest.mark.parametrize("compressed", [False, True])
def test_spans_are_received_over_http(
    store: Store, exported: tuple[TracerProvider, InMemorySpanExporter], compressed: bool
) -> None:
    """OTLP over HTTP in protobuf, compressed or not; the page's JSON contains the trace."""
    provider, exporter = exported
    trace_id = make_spans(provider)
    body = encode_spans(exporter.get_finished_spans()).SerializeToString()
    headers = {"content-encoding": "gzip"} if compressed else {}
    with web_server("127.0.0.1:0", store) as port, client(port) as http:
        sent = http.post(
            "/v1/traces", content=gzip.compress(body) if compressed else body, headers=headers
        )
        assert sent.status_code == 200
        [summary] = http.get("/api/traces").json()["traces"]
        trace = http.get(f"/api/traces/{trace_id}").json()
    assert summary["name"] == "bake"
    assert summary["outcome"] == "failed"
    assert summary["num_spans"] == 2
    assert [(each["name"], each["depth"]) for each in trace["spans"]] == [("bake", 0), ("knead", 1)]
    assert trace["spans"][0]["start_ms"] == 0
    assert 0 <= trace["spans"][0]["events"][0]["at_ms"] <= trace["duration_ms"]


def client(port: int) -> httpx.Client:
    return httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=10)


def test_the_page_is_self_contained(store: Store) -> None:
    """The page, its style sheet and its script are served, and load nothing from other hosts."""
    with web_server("127.0.0.1:0", store) as port, client(port) as http:
        for path in ("/", f"/trace/{TRACE}", "/traceview.css", "/list.js", "/trace.js"):
            response = http.get(path)
            assert response.status_code == 200
            assert "default-src 'self'" in response.headers["content-security-policy"]
            assert "https://" not in response.text
            assert "innerHTML" not in response.text
        assert http.get(f"/api/traces/{TRACE}").status_code == 404
        for path in ("/../spans.py", "/static/index.html", "/trace/x"):
            assert http.get(path).status_code == 404


@pytest.mark.parametrize("body", [b"\xff\xff", b"{}" * 50])
def test_an_invalid_export_is_refused(store: Store, body: bytes) -> None:
    """The response is 400, compressed or not, and the server continues."""
    with web_server("127.0.0.1:0", store) as port, client(port) as http:
        assert http.post("/v1/traces", content=body).status_code == 400
        headers = {"content-encoding": "gzip"}
        assert http.post("/v1/traces", content=body, headers=headers).status_code == 400
        assert http.get("/api/traces").json()["traces"] == []


def test_the_oldest_trace_is_evicted(store: Store) -> None:
    """The numbers of traces, and of spans of a trace, are limited."""
    for number in range(5):
        store.add([span("a", number, number + 1, trace_id=f"{number:032x}")])
    assert [int(each.trace_id, 16) for each in store.summaries()] == [4, 3, 2]
    store.add(span(str(number), 0, 1) for number in range(MAX_SPANS + 10))
    assert len(store.spans(TRACE)) == MAX_SPANS


def test_a_waterfall_contains_every_span_once() -> None:
    """Children are below their parent; a span without a known parent is a root."""
    spans = [
        span("late", 5, 6, parent="root"),
        span("early", 1, 9, parent="root"),
        span("root", 0, 10),
        span("inner", 2, 3, parent="early"),
        span("lost", 4, 5, parent="unknown"),
    ]
    rows = [(row.span.name, row.depth) for row in waterfall(spans)]
    assert rows == [("root", 0), ("early", 1), ("inner", 2), ("late", 1), ("lost", 0)]


def test_self_time_is_outside_of_children() -> None:
    """Children may overlap each other, and end after their parent."""
    spans = [
        span("root", 0, 10),
        span("first", 1, 4, parent="root"),
        span("overlapping", 3, 5, parent="root"),
        span("inside", 3, 4, parent="root"),
        span("late", 9, 12, parent="root"),
    ]
    times = {row.span.name: row.self_time / 1e6 for row in waterfall(spans)}
    assert times == {"root": 5, "first": 3, "overlapping": 2, "inside": 1, "late": 3}


def stored(store: Store) -> None:
    """Three requests: 10 ms, 200 ms and a failover, 3 s and failed."""
    failover = Event("weir.failover", 5, {"server.address": "10.0.0.7"})
    store.add(
        [
            span("GET /a", 0, 10, trace_id="a" * 32, attributes={"weir.outcome": "ok"}),
            span("POST /b", 1000, 1200, trace_id="b" * 32, attributes={"gen_ai.model": "Demo"}),
            span("Generate", 1100, 1150, trace_id="b" * 32, parent="POST /b", events=(failover,)),
            span("GET /c", 2000, 5000, trace_id="c" * 32, failed=True, message="no reply"),
        ]
    )


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", "cba"),
        ("q=get", "ca"),
        ("q=get+reply", "c"),
        ("q=GEN_AI.model%3Ddemo", "b"),
        ("q=10.0.0.7", "b"),
        ("q=aaaaaaaa", "a"),
        ("q=absent", ""),
        ("outcome=failed", "c"),
        ("outcome=ok", "ba"),
        ("outcome=failovers", "b"),
        ("min_ms=10&max_ms=200", "ba"),
        ("min_ms=200.5", "c"),
        ("q=get&max_ms=100&outcome=ok", "a"),
    ],
)
def test_the_list_is_filtered(store: Store, query: str, found: str) -> None:
    """By text, outcome and duration."""
    stored(store)
    with web_server("127.0.0.1:0", store) as port, client(port) as http:
        traces = http.get(f"/api/traces?{query}").json()["traces"]
    assert "".join(trace["trace_id"][0] for trace in traces) == found


def test_the_list_counts_outcomes(store: Store) -> None:
    """Of the traces that match the other filters."""
    stored(store)
    with web_server("127.0.0.1:0", store) as port, client(port) as http:
        answer = http.get("/api/traces?outcome=failed&max_ms=4000").json()
    assert answer["outcomes"] == {"ok": 2, "failed": 1, "failovers": 1}
    [trace] = answer["traces"]
    assert (trace["num_failovers"], trace["duration_ms"]) == (0, 3000)


def test_an_unchanged_list_is_not_sent_again(store: Store) -> None:
    """The page polls with the version that it has."""
    stored(store)
    with web_server("127.0.0.1:0", store) as port, client(port) as http:
        path = f"/api/traces?version={http.get('/api/traces').json()['version']}"
        assert http.get(path).status_code == 204
        store.add([span("more", 0, 1)])
        assert http.get(path).status_code == 200


@pytest.mark.parametrize("query", ["min_ms=-1", "max_ms=nan", "min_ms=x", f"q={'x' * 201}"])
def test_a_bad_filter_is_refused(store: Store, query: str) -> None:
    """The message names it and the given value."""
    with web_server("127.0.0.1:0", store) as port, client(port) as http:
        answer = http.get(f"/api/traces?{query}")
    assert answer.status_code == 400
    name, _, value = query.partition("=")
    assert answer.text.startswith(f"{name} must ")
    assert answer.text.endswith(f", given {'201' if name == 'q' else repr(value)}\n")


def test_a_trace_is_open_until_its_root_is_received() -> None:
    """Before that, its first span names it."""
    spans = [span("child", 1, 3, parent="root")]
    found = summarize(TRACE, spans)
    assert found[1:] == ("child", "gateway", 1e6, 2e6, "open", False, 1, False, 0)
    spans.append(span("root", 0, 4, attributes={"weir.outcome": "cancelled"}))
    assert summarize(TRACE, spans).outcome == "cancelled"
    assert summarize(TRACE, spans).complete


def test_engine_steps_are_kept_apart_from_the_other_spans(store: Store) -> None:
    """A trace of which only steps are known is not in the list."""
    store.add([span("engine_step", 1, 2), span("engine_step", 1, 2, trace_id="2" * 32)])
    store.add([span("request", 0, 3)])
    assert [each.trace_id for each in store.summaries()] == [TRACE]
    assert [each.name for each in store.spans(TRACE)] == ["request"]
    assert [step.name for step in store.steps(TRACE)] == ["engine_step"]


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [(850_000, "850 µs"), (1_234_000, "1.23 ms"), (123_400_000, "123 ms"), (6.12e10, "61.2 s")],
)
def test_durations_are_short(nanoseconds: float, text: str) -> None:
    """Three significant digits and a unit."""
    assert duration(round(nanoseconds)) == text


def test_a_terminal_shows_the_waterfall() -> None:
    """A bar shows a span's time; a failed span has its outcome."""
    spans = [span("GET /x", 0, 1000), span("half", 500, 1000, parent="GET /x", failed=True)]
    head, first, second = render(TRACE, spans).splitlines()
    assert head == f"GET /x  ok  1.00 s  {TRACE}"
    assert first.split() == ["gateway", "GET", "/x", "█" * 40, "1.00", "s"]
    assert second.split() == ["gateway", "half", "█" * 20, "500", "ms", "failed"]
    assert second.index("█") == first.index("█") + 20
    assert "\x1b[31m" in render(TRACE, spans, color=True)


def test_the_printer_waits_for_the_root(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each trace is printed once, when its root is received and no more spans arrive."""
    printed: list[str] = []
    printer = Printer(store, printed.append, color=False)
    monkeypatch.setattr("scripts.traceview.terminal.QUIET_SECONDS", 0.0)
    store.add([span("child", 1, 2, parent="root")])
    printer.print_complete()
    assert printed == []
    store.add([span("root", 0, 3)])
    printer.print_complete()
    printer.print_complete()
    assert len(printed) == 1
    assert printed[0].count("\n") == 4


def test_the_process_starts_and_ends(exported: tuple[TracerProvider, InMemorySpanExporter]) -> None:
    """It prints its addresses and a received trace, and exits with 0 on SIGTERM."""
    addresses = ["--listen", "127.0.0.1:0", "--grpc-listen", "127.0.0.1:0"]
    command = [sys.executable, "-m", "scripts.traceview", "--terminal", *addresses]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        url = line.split()[2].rstrip(",")
        provider, exporter = exported
        trace_id = make_spans(provider)
        spans: tuple[ReadableSpan, ...] = exporter.get_finished_spans()
        body = encode_spans(spans).SerializeToString()
        httpx.post(f"{url}/v1/traces", content=body, trust_env=False, timeout=20)
        head = process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert head.startswith("bake  failed")
    assert trace_id in head


def test_a_port_in_use_is_named() -> None:
    """By both servers; gRPC itself does not report the system's error."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for server in (
            web_server(address, Store(1)),
            grpc_receiver(address, Store(1).add),
        ):
            with (
                pytest.raises(OSError, match=f"cannot listen on {address}: Address already in use"),
                server,
            ):
                pass
