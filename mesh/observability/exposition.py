"""The metrics of this process in Prometheus' text formats."""

from __future__ import annotations

import gzip
from enum import Enum
from typing import NamedTuple

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.openmetrics import exposition as openmetrics

from mesh.accept import accepts, prefers

# Series with the time of the first observation: a third of all, and read by no query. Metrics that
# exist already do not have them either, as they are made when the metrics are written.
disable_created_metrics()  # type: ignore[no-untyped-call]

OPENMETRICS = "application/openmetrics-text"
PLAIN_TEXT = "text/plain"


class Format(Enum):
    """A text format."""

    OPENMETRICS = OPENMETRICS
    """With exemplars."""
    PLAIN_TEXT = PLAIN_TEXT


class Wanted(NamedTuple):
    """What a scraper accepts."""

    format: Format
    gzip: bool = False


class Exposition(NamedTuple):
    """The response to a scrape."""

    body: bytes
    headers: dict[str, str]


def wanted_by(accept: str, accept_encoding: str = "") -> Wanted:
    """OpenMetrics if the Accept header prefers it, else plain text; gzip if it is accepted."""
    openmetrics_first = prefers(accept, OPENMETRICS, PLAIN_TEXT)
    wanted = Format.OPENMETRICS if openmetrics_first else Format.PLAIN_TEXT
    return Wanted(wanted, accepts(accept_encoding, "gzip"))


def expose(wanted: Wanted) -> Exposition:
    """The metrics as wanted.

    Names are never escaped, even if the scraper asks for it: the library would replace the colons
    of vLLM's metric names by underscores in samples but not in their metadata.
    """
    if wanted.format is Format.PLAIN_TEXT:
        body, content_type = generate_latest(REGISTRY), CONTENT_TYPE_LATEST
    else:
        body = openmetrics.generate_latest(  # type: ignore[no-untyped-call]
            REGISTRY, escaping=openmetrics.ALLOWUTF8
        )
        content_type = f"{OPENMETRICS}; version=1.0.0; charset=utf-8"
    headers = {"content-type": content_type, "vary": "accept, accept-encoding"}
    if wanted.gzip:
        body = gzip.compress(body, compresslevel=1)
        headers["content-encoding"] = "gzip"
    return Exposition(body, headers)
