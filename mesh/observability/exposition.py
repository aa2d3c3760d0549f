"""The metrics of this process in Prometheus' text formats."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics

from mesh.accept import prefers

OPENMETRICS = "application/openmetrics-text"
PLAIN_TEXT = "text/plain"


class Format(Enum):
    """A text format."""

    OPENMETRICS = OPENMETRICS
    """With exemplars."""
    PLAIN_TEXT = PLAIN_TEXT


class Exposition(NamedTuple):
    """The response to a scrape."""

    body: bytes
    content_type: str


def preferred_format(accept: str) -> Format:
    """OpenMetrics if the Accept header prefers it, else plain text."""
    return Format.OPENMETRICS if prefers(accept, OPENMETRICS, PLAIN_TEXT) else Format.PLAIN_TEXT


def expose(wanted: Format) -> Exposition:
    """The metrics in a format.

    Names are never escaped, even if the scraper asks for it: the library would replace the colons
    of vLLM's metric names by underscores in samples but not in their metadata.
    """
    if wanted is Format.PLAIN_TEXT:
        return Exposition(generate_latest(REGISTRY), CONTENT_TYPE_LATEST)
    body: bytes = openmetrics.generate_latest(  # type: ignore[no-untyped-call]
        REGISTRY, escaping=openmetrics.ALLOWUTF8
    )
    return Exposition(body, f"{OPENMETRICS}; version=1.0.0; charset=utf-8")
