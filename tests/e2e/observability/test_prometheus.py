"""Prometheus scrapes the four processes: every panel and alert query returns a series."""

from __future__ import annotations

import math
import os
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.support.load import MAX_CONCURRENT, Load, Recorded, write_keys
from tests.e2e.support.prometheus import Prometheus, scraping, until
from tests.e2e.support.snapshot import COUNT, TTFT, EventLoopLag, Snapshot, check_times
from tests.e2e.support.stack import SERVICES, Stack, free_ports
from tests.observability.dashboards import metric_names, panel_queries, targets
from tests.observability.rules import FILES, alerts
from tests.observability.test_metrics_table import documented

pytestmark = [
    pytest.mark.timeout(480),
    pytest.mark.skipif(
        shutil.which("prometheus") is None,
        reason="NOT TESTED: no Prometheus here (apt-get install prometheus)",
    ),
]

NEEDS_A_FAILURE = {"WeirServiceAbsent"}
"""Alerts whose expression has no series while all services run."""


WITH_FAILOVER = os.environ.get("WITH_FAILOVER") == "1"
"""Whether there is a second engine, which a test kills; it takes long to start."""

START_SECONDS = 240.0
"""Time to start the processes on a busy machine."""


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
    folder = tmp_path_factory.mktemp("watched")
    settings = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector,
        "OTEL_TRACES_SAMPLER": "always_on",
        "ORCHESTRATOR_MAX_CONCURRENT_REQUESTS": str(MAX_CONCURRENT),
        "GATEWAY_API_KEYS_FILE": str(write_keys(folder)),
    }
    stack = Stack(folder, index, settings)
    if WITH_FAILOVER:
        add_engine(stack)
    try:
        stack.start()
        if WITH_FAILOVER:
            stack.start_as("inference-2", "inference")
        stack.wait_ready(START_SECONDS)
        yield stack
    finally:
        stack.stop()


def add_engine(stack: Stack) -> None:
    engine, metrics = (f"127.0.0.1:{port}" for port in free_ports(2))
    stack.addresses["inference-2"], stack.metrics["inference-2"] = engine, metrics
    stack._environment["INFERENCE_HOST"] += f",{engine}"


@pytest.fixture(scope="module")
def sent(watched: Stack) -> Load:
    """The load of this module, and what its client recorded."""
    return Load(watched.url, watched.addresses["orchestrator"])


@pytest.fixture(scope="module")
def prometheus(
    watched: Stack, tmp_path_factory: pytest.TempPathFactory, sent: Load
) -> Iterator[Prometheus]:
    """A Prometheus that has scraped two rounds of load, so that rates have values."""
    with scraping(watched, tmp_path_factory.mktemp("prometheus"), FILES) as prometheus:
        until(
            lambda: len(prometheus.query("up == 1")) == len(watched.metrics),
            lambda: f"not all services are scraped: {prometheus.query('up')}",
        )
        for _ in range(2):
            run_and_wait(prometheus, sent)
        yield prometheus


def run_and_wait(prometheus: Prometheus, sent: Load) -> None:
    sent.run()
    wait_scraped(prometheus)


def wait_scraped(prometheus: Prometheus) -> None:
    """Waits until every target was scraped after now."""
    done = time.time()
    number = len(prometheus.query("up == 1"))

    def is_scraped() -> bool:
        return len(prometheus.query(f"timestamp(up == 1) > {done}")) >= number

    until(is_scraped, lambda: "not all services were scraped after the load")


def values(series: list[dict[str, Any]]) -> list[float]:
    return [float(each["value"][1]) for each in series]


def missing(prometheus: Prometheus, wanted: dict[tuple[str, ...], list[str]]) -> dict[Any, str]:
    """The expressions that return no series, or only NaN, by panel or alert."""
    return {
        place: expression
        for place, expressions in wanted.items()
        for expression in expressions
        if all(math.isnan(value) for value in values(prometheus.query(expression)))
    }


def until_none_is_missing(
    prometheus: Prometheus, wanted: dict[tuple[str, ...], list[str]], again: Callable[[], None]
) -> None:
    """Repeats the load while series are missing: rates cover the last minute only."""
    end = time.monotonic() + 60
    while left := missing(prometheus, wanted):
        assert time.monotonic() < end, left
        again()


@pytest.fixture
def load_again(prometheus: Prometheus, sent: Load) -> Callable[[], None]:
    return lambda: run_and_wait(prometheus, sent)


def test_every_panel_has_data(prometheus: Prometheus, load_again: Callable[[], None]) -> None:
    """Each query of each panel returns a number."""
    wanted: dict[tuple[str, ...], list[str]] = {}
    for query in panel_queries():
        wanted.setdefault((query.dashboard, query.panel), []).append(query.expression)
    assert sum(map(len, wanted.values())) > 100
    until_none_is_missing(prometheus, wanted, load_again)


def test_every_alert_has_data_and_none_fires(
    prometheus: Prometheus, load_again: Callable[[], None]
) -> None:
    """The compared expressions of each alert have values; all alerts parse.

    The load's failures would make the alerts on objectives fire after a few minutes.
    """
    wanted: dict[tuple[str, ...], list[str]] = {
        ("alert", alert.name, alert.labels["severity"]): alert.measured
        for alert in alerts()
        if alert.name not in NEEDS_A_FAILURE
    }
    until_none_is_missing(prometheus, wanted, load_again)
    for alert in alerts():
        prometheus.query(alert.expression)  # fails if it does not parse
    assert prometheus.query('ALERTS{alertstate="firing",alertname!~".*Budget"}') == []
    assert {alert.name for alert in alerts()} >= NEEDS_A_FAILURE


def test_every_panel_that_asks_for_exemplars_gets_some(prometheus: Prometheus) -> None:
    """Each of its metrics has a trace id with at least one observation."""
    names = {
        name
        for _, _, target in targets("prometheus")
        if target.get("exemplar")
        for name in metric_names(target["expr"])
    }
    assert {"inference_step_seconds_bucket", "vllm:iteration_tokens_total_bucket"} <= names

    def without() -> list[str]:
        return sorted(name for name in names if not prometheus.exemplars(name))

    until(lambda: not without(), lambda: f"no exemplars: {without()}", 30)


def test_exemplars_have_the_trace_ids_of_requests(prometheus: Prometheus, sent: Load) -> None:
    """The time-to-first-token exemplars have trace ids from response headers."""
    trace_ids: set[str] = set()

    def exemplar_ids() -> set[str]:
        name = 'gen_ai_server_time_to_first_token_seconds_bucket{gen_ai_operation_name="search"}'
        found = prometheus.exemplars(name)
        return {
            exemplar["labels"]["trace_id"] for series in found for exemplar in series["exemplars"]
        }

    def is_found() -> bool:
        trace_ids.update(each.trace_id for each in sent.recorded)
        return bool(exemplar_ids() & trace_ids)

    until(is_found, lambda: f"{exemplar_ids()} are none of {trace_ids}", 30)


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


def test_the_metrics_equal_what_the_client_recorded(
    prometheus: Prometheus, watched: Stack, sent: Load
) -> None:
    """Requests, tokens, and percentiles of the times, by operation and outcome."""
    wait_scraped(prometheus)
    before = Snapshot(prometheus)
    with EventLoopLag() as lag:
        recorded = sent.compare(12)
    wanted = expected_counts(recorded), expected_tokens(recorded)

    def counted() -> tuple[object, object]:
        after = Snapshot(prometheus)
        tokens = {place: after.tokens(before, *place) for place in wanted[1]}
        return after.counts(before), tokens

    until(lambda: counted() == wanted, lambda: f"{counted()} instead of {wanted}")
    after = Snapshot(prometheus)
    for operation in ("chat", "search", "text_completion"):
        own = [each for each in recorded if each.operation == operation and each.status == 200]
        check_times(after.buckets(before, COUNT, operation), [each.seconds for each in own], lag)
        streams = [
            each.ttft for each in recorded if each.operation == operation and each.ttft is not None
        ]
        check_times(after.buckets(before, TTFT, operation), streams, lag)


def expected_tokens(recorded: Sequence[Recorded]) -> dict[tuple[str, str], int]:
    """Tokens by operation and type, of operations without a cancelled request."""
    return {
        (name, kind): sum(getattr(r, f"{kind}_tokens") for r in recorded if r.operation == name)
        for name in ("chat", "search", "embeddings")
        for kind in ("input", "output")
    }


def expected_counts(recorded: Sequence[Recorded]) -> dict[tuple[str, str], int]:
    """Requests by operation and error, of those for which a model was chosen."""
    errors = {200: "", 499: "cancelled"}
    return dict(
        Counter((each.operation, errors[each.status]) for each in recorded if each.status in errors)
    )


@pytest.mark.skipif(not WITH_FAILOVER, reason="`make test-prometheus` has a second engine")
def test_a_failover_is_counted_once(prometheus: Prometheus, watched: Stack, sent: Load) -> None:
    """An engine is killed: its streams continue, are successes, and are counted."""
    before = prometheus.query("sum(orchestrator_failovers_total)")
    assert values(before) == [0.0]
    address = watched.metrics["inference-2"]

    def kill_when_busy() -> None:
        def is_busy() -> bool:
            page = httpx.get(f"http://{address}/metrics", trust_env=False).text
            found = re.findall(r"^vllm:num_requests_running\S* (\S+)$", page, re.MULTILINE)
            return float(found[0]) > 0

        until(is_busy, lambda: "the second engine got no request")
        watched.processes["inference-2"].kill()

    killer = threading.Thread(target=kill_when_busy)
    killer.start()
    recorded = sent.stream_long(MAX_CONCURRENT)
    killer.join()
    assert {each.status for each in recorded} == {200}
    wait_scraped(prometheus)
    [number] = values(prometheus.query("sum(orchestrator_failovers_total)"))
    assert 1 <= number <= MAX_CONCURRENT
