"""The summary that benchmarks/queue_vs_direct.py writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.queue_shape.report import Phase, added, summary

FILE = Path(__file__).resolve().parents[2] / "docs" / "benchmarks" / "queue_vs_direct.json"


def phase(shape: str, *milliseconds: float) -> Phase:
    """One round of one client."""
    seconds = [each / 1e3 for each in milliseconds]
    return Phase(shape, 1, ttft=seconds, end_to_end=[2 * each for each in seconds])


def test_the_summary_has_medians_of_the_rounds_percentiles() -> None:
    """And the added latency is the median of the rounds' differences."""
    phases = [phase("alone", 1, 2, 3), phase("direct", 3, 4, 9), phase("alone", 2, 2, 2)]
    phases += [phase("direct", 5, 5, 5), phase("alone", 1, 1, 1), phase("direct", 9, 9, 9)]
    rows = {row["shape"]: row for row in summary(phases)}
    assert rows["direct"]["requests"] == 9
    assert rows["direct"]["ttft_p50_ms"] == pytest.approx(5)
    assert rows["direct"]["ttft_p99_ms"] == pytest.approx(9)
    assert rows["alone"]["end_to_end_p50_ms"] == pytest.approx(4)
    row = added(phases, 3, "direct", 1)
    assert row["added_ttft_p50_ms"] == pytest.approx(3)


def test_the_committed_file_is_a_summary() -> None:
    """It names command and machine, and holds no samples."""
    report = json.loads(FILE.read_text())
    assert report["command"].startswith("python -m benchmarks.queue_vs_direct")
    assert report.keys() >= {"machine", "rounds", "rows", "percentiles"}
    for row in [*report["rows"], *report["percentiles"]]:
        assert all(isinstance(value, int | float | str) for value in row.values())
