"""The metrics as text, for the Accept headers of old and new scrapers."""

from __future__ import annotations

import gzip
from collections.abc import Iterator

import pytest
from prometheus_client import REGISTRY, Histogram

from mesh.observability.exposition import expose, wanted_by

PROMETHEUS_2_42 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)


@pytest.fixture
def histogram() -> Iterator[Histogram]:
    histogram = Histogram("vllm:exposed_seconds", "A name with a colon.", ["a"])
    yield histogram
    REGISTRY.unregister(histogram)


@pytest.mark.parametrize("accept", [PROMETHEUS_2_42, PROMETHEUS_3, "text/plain", "*/*", ""])
def test_names_keep_their_colons(histogram: Histogram, accept: str) -> None:
    """In samples and in metadata, without quotes, whatever the scraper accepts."""
    histogram.labels("b").observe(0.1, {"trace_id": "abc"})
    body, headers = expose(wanted_by(accept))
    content_type = headers["content-type"]
    assert b"# TYPE vllm:exposed_seconds histogram" in body
    assert b'\nvllm:exposed_seconds_count{a="b"} 1.0' in body
    assert b"vllm_" not in body
    has_exemplars = "openmetrics" in accept
    assert content_type.startswith("application/openmetrics-text; version=1.0.0") == has_exemplars
    assert (b'trace_id="abc"' in body) == has_exemplars
    assert body.endswith(b"# EOF\n") == has_exemplars


@pytest.mark.parametrize("accept", [PROMETHEUS_3, ""])
def test_the_body_is_compressed_if_the_scraper_accepts_it(
    histogram: Histogram, accept: str
) -> None:
    """Prometheus sends `Accept-Encoding: gzip`."""
    histogram.labels("b").observe(0.1)
    plain = expose(wanted_by(accept, "gzip;q=0, identity"))
    assert "content-encoding" not in plain.headers
    zipped = expose(wanted_by(accept, "deflate, gzip"))
    assert zipped.headers["content-encoding"] == "gzip"
    assert b"vllm:exposed_seconds_count" in gzip.decompress(zipped.body)
    assert len(zipped.body) < len(plain.body) / 3


def test_no_series_has_the_time_of_creation(histogram: Histogram) -> None:
    """`_created` would be a series more for each counter and histogram."""
    histogram.labels("b").observe(0.1)
    for accept in (PROMETHEUS_3, ""):
        assert b"_created" not in expose(wanted_by(accept)).body
