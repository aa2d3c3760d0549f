"""The metrics of this process as text."""

from __future__ import annotations

from typing import NamedTuple

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics

OPENMETRICS = "application/openmetrics-text"


class Exposition(NamedTuple):
    """A scrape's answer."""

    body: bytes
    content_type: str


def expose(accept: str) -> Exposition:
    """In OpenMetrics, which alone has exemplars, if `accept` names it; else in the plain format.

    Our names are such as every Prometheus takes. Asked to escape them, as scrapers of one time
    do, the library would write vLLM's colons as underscores in samples, and in samples alone.
    """
    if OPENMETRICS not in accept:
        return Exposition(generate_latest(REGISTRY), CONTENT_TYPE_LATEST)
    body: bytes = openmetrics.generate_latest(  # type: ignore[no-untyped-call]
        REGISTRY, escaping=openmetrics.ALLOWUTF8
    )
    return Exposition(body, f"{OPENMETRICS}; version=1.0.0; charset=utf-8")
