"""A real Prometheus and four real services: every panel and every alert finds its series."""

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

from tests.e2e.prometheus import Prometheus, scraping, until
from tests.e2e.stack import SERVICES, Stack
from tests.observability.dashboards import panel_queries
from tests.observability.rules import FILES, alerts
from tests.test_metrics_table import documented

pytestmark = [
    pytest.mark.timeout(480),
    pytest.mark.skipif(
        shutil.which("prometheus") is None,
        reason="NOT TESTED: no Prometheus here (apt-get install prometheus)",
    ),
]

# What shows nothing as long as all is well, and why.
NEEDS_A_FAILURE = {
    ("Weir overview", "Refused"): "needs more requests than there are places for",
    ("alert", "WeirServiceAbsent"): "needs a service that is gone",
}

START_SECONDS = 240.0
"""The processes may start beside many others."""

CHAT = {"model": "demo", "messages": [{"role": "user", "content": "What is a token?"}]}


class _Sink(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes spans and forgets them: observations have exemplars only where spans are recorded."""

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
    """Those of all searches of this module."""
    return set()


@pytest.fixture(scope="module")
def prometheus(
    watched: Stack, tmp_path_factory: pytest.TempPathFactory, trace_ids: set[str]
) -> Iterator[Prometheus]:
    """One that has seen a load twice, with a scrape between, so that rates are of something."""
    with scraping(watched, tmp_path_factory.mktemp("prometheus"), FILES) as prometheus:
        until(
            lambda: len(prometheus.query("up == 1")) == len(SERVICES),
            lambda: f"not all are scraped: {prometheus.query('up')}",
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
    """One of each kind of request, one that fails, and one whose client leaves; trace ids."""
    trace_ids = set()
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        for streaming in ("true", "false"):
            query = {"query": "What is a token?", "streaming": streaming, "max_tokens": "16"}
            answer = client.get("/api/v1/search", params=query)
            assert answer.status_code == 200, answer.text
            trace_ids.add(answer.headers["x-trace-id"])
        for stream in (True, False):
            asked = {**CHAT, "max_tokens": 16, "stream": stream}
            assert client.post("/v1/chat/completions", json=asked).status_code == 200
        text = {"model": "demo", "prompt": "A token is", "max_tokens": 16, "stream": True}
        assert client.post("/v1/completions", json=text).status_code == 200
        assert client.post("/v1/chat/completions", json={**CHAT, "model": "x"}).status_code == 404
        leave_early(client)
        assert client.get("/v1/models").status_code == 200
    return trace_ids


def leave_early(client: httpx.Client) -> None:
    """A client that closes its connection when the first text has come."""
    text = {"model": "demo", "prompt": "A token is", "max_tokens": 400, "stream": True}
    asked = {**text, "ignore_eos": True}
    with client.stream("POST", "/v1/completions", json=asked) as answer:
        for line in answer.iter_lines():
            if line.startswith("data:"):
                break


def values(series: list[dict[str, Any]]) -> list[float]:
    return [float(each["value"][1]) for each in series]


def missing(prometheus: Prometheus, wanted: dict[tuple[str, str], list[str]]) -> dict[Any, str]:
    """What gives no series, or none with a number, by place."""
    return {
        place: expression
        for place, expressions in wanted.items()
        for expression in expressions
        if all(math.isnan(value) for value in values(prometheus.query(expression)))
    }


def until_none_is_missing(
    prometheus: Prometheus, wanted: dict[tuple[str, str], list[str]], again: Callable[[], None]
) -> None:
    """Loads again as long as something is missing: rates look back at the last minute only."""
    end = time.monotonic() + 60
    while left := missing(prometheus, wanted):
        assert time.monotonic() < end, left
        again()


@pytest.fixture
def load_again(prometheus: Prometheus, watched: Stack, trace_ids: set[str]) -> Callable[[], None]:
    return lambda: _load_and_wait(prometheus, watched.url, trace_ids)


def test_every_panel_shows_something(
    prometheus: Prometheus, load_again: Callable[[], None]
) -> None:
    """Each query gives a number, save those that need a failure."""
    wanted: dict[tuple[str, str], list[str]] = {}
    for query in panel_queries():
        place = (query.dashboard, query.panel)
        if place not in NEEDS_A_FAILURE:
            wanted.setdefault(place, []).append(query.expression)
    assert sum(map(len, wanted.values())) > 60
    until_none_is_missing(prometheus, wanted, load_again)


def test_every_alert_measures_something_and_none_fires(
    prometheus: Prometheus, load_again: Callable[[], None]
) -> None:
    """What stands before the limit has a value; what needs a failure is at least understood."""
    wanted = {
        ("alert", alert.name): [alert.measured]
        for alert in alerts()
        if ("alert", alert.name) not in NEEDS_A_FAILURE
    }
    until_none_is_missing(prometheus, wanted, load_again)
    for alert in alerts():
        prometheus.query(alert.expression)  # fails if it is not understood
    assert prometheus.query('ALERTS{alertstate="firing"}') == []
    for place in NEEDS_A_FAILURE:
        assert place[0] != "alert" or place[1] in {alert.name for alert in alerts()}


def test_a_bucket_leads_to_the_trace_of_the_request(
    prometheus: Prometheus, trace_ids: set[str]
) -> None:
    """The exemplars of the time to first token have trace ids that clients were told."""

    def told() -> set[str]:
        name = 'gen_ai_server_time_to_first_token_seconds_bucket{gen_ai_operation_name="search"}'
        found = prometheus.exemplars(name)
        return {
            exemplar["labels"]["trace_id"] for series in found for exemplar in series["exemplars"]
        }

    until(lambda: bool(told() & trace_ids), lambda: f"{told()} are none of {trace_ids}", 30)


@pytest.mark.parametrize("service", SERVICES)
def test_a_running_service_shows_exactly_what_is_documented(
    prometheus: Prometheus, watched: Stack, service: str
) -> None:
    """/metrics of the process against docs/metrics.md, both ways."""
    address = watched.addresses if service == "gateway" else watched.metrics
    text = httpx.get(f"http://{address[service]}/metrics", trust_env=False).text
    shown = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in text_string_to_metric_families(text)
        if not family.name.endswith("_created")
    }
    sections = documented()
    assert shown == sections["Every service"] | sections[service]
