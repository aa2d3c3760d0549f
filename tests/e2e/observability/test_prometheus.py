"""Prometheus scrapes the four processes: every panel and alert query returns a series."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.support.prometheus import Prometheus, scraping, until
from tests.e2e.support.stack import SERVICES, Stack
from tests.observability.dashboards import panel_queries
from tests.observability.rules import FILES, alerts
from tests.observability.test_metrics_table import documented

pytestmark = [
    pytest.mark.timeout(480),
    pytest.mark.skipif(
        shutil.which("prometheus") is None,
        reason="NOT TESTED: no Prometheus here (apt-get install prometheus)",
    ),
]

# Panels and alerts without a series while all services work, and the reason.
NEEDS_A_FAILURE = {
    ("Weir overview", "Refused requests"): "needs more requests than the admission limit",
    ("alert", "WeirServiceAbsent"): "needs a service that is down",
}

START_SECONDS = 240.0
"""Time to start the processes on a busy machine."""

CHAT = {"model": "demo", "messages": [{"role": "user", "content": "What is a token?"}]}


class _Sink(trace_service_pb2_grpc.TraceServiceServicer):
    """Discards spans: exemplars exist only if spans are recorded."""

    def Export(self, request: Any, context: Any) -> trace_service_pb2.ExportTraceServiceResponse:
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture(scope="module")
def collector() -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(_Sink(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"http://127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture(scope="module")
def watched(
    tmp_path_factory: pytest.TempPathFactory, index: Path, collector: str
) -> Iterator[Stack]:
    settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector, "OTEL_TRACES_SAMPLER": "always_on"}
    stack = Stack(tmp_path_factory.mktemp("watched"), index, settings)
    try:
        stack.start()
        stack.wait_ready(START_SECONDS)
        yield stack
    finally:
        stack.stop()


@pytest.fixture(scope="module")
def trace_ids() -> set[str]:
    """The trace ids of all searches of this module."""
    return set()


@pytest.fixture(scope="module")
def prometheus(
    watched: Stack, tmp_path_factory: pytest.TempPathFactory, trace_ids: set[str]
) -> Iterator[Prometheus]:
    """A Prometheus that has scraped two rounds of load, so that rates have values."""
    with scraping(watched, tmp_path_factory.mktemp("prometheus"), FILES) as prometheus:
        until(
            lambda: len(prometheus.query("up == 1")) == len(SERVICES),
            lambda: f"not all services are scraped: {prometheus.query('up')}",
        )
        for _ in range(2):
            _load_and_wait(prometheus, watched.url, trace_ids)
        yield prometheus


def _load_and_wait(prometheus: Prometheus, url: str, trace_ids: set[str]) -> None:
    trace_ids |= load(url)
    done = time.time()

    def is_scraped() -> bool:
        scraped = prometheus.query(f"timestamp(up == 1) > {done}")
        return len(scraped) == len(SERVICES)

    until(is_scraped, lambda: "not all services were scraped after the load")


def load(url: str) -> set[str]:
    """Sends each kind of request, a failing one and an abandoned one; returns trace ids."""
    trace_ids = set()
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        for streaming in ("true", "false"):
            query = {"query": "What is a token?", "streaming": streaming, "max_tokens": "16"}
            answer = client.get("/api/v1/search", params=query)
            assert answer.status_code == 200, answer.text
            trace_ids.add(answer.headers["x-trace-id"])
        for stream in (True, False):
            body = {**CHAT, "max_tokens": 16, "stream": stream}
            assert client.post("/v1/chat/completions", json=body).status_code == 200
        text = {"model": "demo", "prompt": "A token is", "max_tokens": 16, "stream": True}
        assert client.post("/v1/completions", json=text).status_code == 200
        assert client.post("/v1/chat/completions", json={**CHAT, "model": "x"}).status_code == 404
        disconnect_early(client)
        assert client.get("/v1/models").status_code == 200
    return trace_ids


def disconnect_early(client: httpx.Client) -> None:
    """Streams a completion and closes the connection after the first event."""
    text = {"model": "demo", "prompt": "A token is", "max_tokens": 400, "stream": True}
    body = {**text, "ignore_eos": True}
    with client.stream("POST", "/v1/completions", json=body) as answer:
        for line in answer.iter_lines():
            if line.startswith("data:"):
                break


def values(series: list[dict[str, Any]]) -> list[float]:
    return [float(each["value"][1]) for each in series]


def missing(prometheus: Prometheus, wanted: dict[tuple[str, str], list[str]]) -> dict[Any, str]:
    """The expressions that return no series, or only NaN, by panel or alert."""
    return {
        place: expression
        for place, expressions in wanted.items()
        for expression in expressions
        if all(math.isnan(value) for value in values(prometheus.query(expression)))
    }


def until_none_is_missing(
    prometheus: Prometheus, wanted: dict[tuple[str, str], list[str]], again: Callable[[], None]
) -> None:
    """Repeats the load while series are missing: rates cover the last minute only."""
    end = time.monotonic() + 60
    while left := missing(prometheus, wanted):
        assert time.monotonic() < end, left
        again()


@pytest.fixture
def load_again(prometheus: Prometheus, watched: Stack, trace_ids: set[str]) -> Callable[[], None]:
    return lambda: _load_and_wait(prometheus, watched.url, trace_ids)


def test_every_panel_has_data(prometheus: Prometheus, load_again: Callable[[], None]) -> None:
    """Each query returns a number, except those that need a failure."""
    wanted: dict[tuple[str, str], list[str]] = {}
    for query in panel_queries():
        place = (query.dashboard, query.panel)
        if place not in NEEDS_A_FAILURE:
            wanted.setdefault(place, []).append(query.expression)
    assert sum(map(len, wanted.values())) > 60
    until_none_is_missing(prometheus, wanted, load_again)


def test_every_alert_has_data_and_none_fires(
    prometheus: Prometheus, load_again: Callable[[], None]
) -> None:
    """The measured expression of each alert has a value; all alerts parse."""
    wanted = {
        ("alert", alert.name): [alert.measured]
        for alert in alerts()
        if ("alert", alert.name) not in NEEDS_A_FAILURE
    }
    until_none_is_missing(prometheus, wanted, load_again)
    for alert in alerts():
        prometheus.query(alert.expression)  # fails if it does not parse
    assert prometheus.query('ALERTS{alertstate="firing"}') == []
    for place in NEEDS_A_FAILURE:
        assert place[0] != "alert" or place[1] in {alert.name for alert in alerts()}


def test_exemplars_have_the_trace_ids_of_requests(
    prometheus: Prometheus, trace_ids: set[str]
) -> None:
    """The time-to-first-token exemplars have trace ids from response headers."""

    def exemplar_ids() -> set[str]:
        name = 'gen_ai_server_time_to_first_token_seconds_bucket{gen_ai_operation_name="search"}'
        found = prometheus.exemplars(name)
        return {
            exemplar["labels"]["trace_id"] for series in found for exemplar in series["exemplars"]
        }

    until(
        lambda: bool(exemplar_ids() & trace_ids),
        lambda: f"{exemplar_ids()} are none of {trace_ids}",
        30,
    )


@pytest.mark.parametrize("service", SERVICES)
def test_a_running_service_exports_exactly_the_documented_metrics(
    prometheus: Prometheus, watched: Stack, service: str
) -> None:
    """The metrics in the process's /metrics equal those in docs/metrics.md."""
    address = watched.addresses if service == "gateway" else watched.metrics
    text = httpx.get(f"http://{address[service]}/metrics", trust_env=False).text
    shown = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in text_string_to_metric_families(text)
        if not family.name.endswith("_created")
    }
    sections = documented()
    assert shown == sections["Every service"] | sections[service]
