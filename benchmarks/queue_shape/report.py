"""Statistics and tables of benchmarks/queue_vs_direct.py."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.harness.percentile import percentile

PERCENTILES = (50, 95, 99)


@dataclass
class Phase:
    """Measurements of one architecture with one number of clients in one round."""

    shape: str
    clients: int
    ttft: list[float] = field(default_factory=list)
    end_to_end: list[float] = field(default_factory=list)
    num_errors: int = 0
    cpu_seconds: float = 0.0
    memory_bytes: int = 0


def added(phases: Sequence[Phase], rounds: int, shape: str, clients: int) -> dict[str, Any]:
    """Latency that a shape adds to the engine alone: medians over the rounds of percentiles."""
    of = {
        (each.shape, round_): each
        for name in (shape, "alone")
        for round_, each in enumerate(p for p in phases if (p.shape, p.clients) == (name, clients))
    }
    row: dict[str, Any] = {"shape": shape, "clients": clients}
    for kind in ("ttft", "end_to_end"):
        for percent in PERCENTILES:
            differences = [
                percentile(getattr(of[shape, number], kind), percent)
                - percentile(getattr(of["alone", number], kind), percent)
                for number in range(rounds)
            ]
            row[f"added_{kind}_p{percent}_ms"] = 1e3 * statistics.median(differences)
    mine = [of[shape, number] for number in range(rounds)]
    num_requests = sum(len(each.ttft) for each in mine)
    row["errors"] = sum(each.num_errors for each in mine)
    row["cpu_ms_per_request"] = 1e3 * sum(e.cpu_seconds for e in mine) / max(1, num_requests)
    row["memory_mib"] = max(each.memory_bytes for each in mine) / 2**20
    return row


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table, with the reduction that direct streams bring."""
    lines = [
        "| clients | shape | added TTFT p50 / p95 / p99 ms | added end-to-end p50 / p95 / p99 ms "
        "| errors | CPU ms/request | memory MiB | direct adds less TTFT (p50) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    direct = {row["clients"]: row for row in rows if row["shape"] == "direct"}
    for row in rows:
        cells = [
            " / ".join(f"{row[f'added_{kind}_p{percent}_ms']:.2f}" for percent in PERCENTILES)
            for kind in ("ttft", "end_to_end")
        ]
        mine, theirs = direct[row["clients"]]["added_ttft_p50_ms"], row["added_ttft_p50_ms"]
        less = "" if row["shape"] == "direct" or theirs <= 0 else f"{1 - mine / theirs:.0%}"
        lines.append(
            f"| {row['clients']} | {row['shape']} | {cells[0]} | {cells[1]} | {row['errors']} "
            f"| {row['cpu_ms_per_request']:.2f} | {row['memory_mib']:.0f} | {less} |"
        )
    return "\n".join(lines)


def summary(phases: Sequence[Phase]) -> list[dict[str, Any]]:
    """For each shape and number of clients: medians over the rounds of the percentiles."""
    groups: dict[tuple[str, int], list[Phase]] = {}
    for phase in phases:
        groups.setdefault((phase.shape, phase.clients), []).append(phase)
    rows = []
    for (shape, clients), rounds in sorted(groups.items()):
        row: dict[str, Any] = {"shape": shape, "clients": clients}
        row["requests"] = sum(len(each.ttft) for each in rounds)
        for kind in ("ttft", "end_to_end"):
            for percent in PERCENTILES:
                values = [percentile(getattr(each, kind), percent) for each in rounds]
                row[f"{kind}_p{percent}_ms"] = 1e3 * statistics.median(values)
        rows.append(row)
    return rows
