"""Writes the table of docs/metrics.md: each metric that a service registers.

Each service is imported in a process of its own, so that the table says what it really shows.
`--check` changes nothing and fails if the file is not what would be written.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "docs" / "metrics.md"
MODULES = {
    "gateway": "gateway.http.server",
    "orchestrator": "orchestrator.application",
    "tokenizer": "tokenizer.application",
    "inference": "inference.application",
}
"""Importing it imports every module of the service that registers metrics."""

SERVICES = tuple(MODULES)
BEGIN, END = "<!-- begin of what scripts.metrics_table writes -->", "<!-- end -->"

_LIST = """
import importlib, json, sys
import mesh.process.lifecycle
importlib.import_module(sys.argv[1])
from prometheus_client import REGISTRY
print(json.dumps([
    (family.name, family.type, list(getattr(collector, "_labelnames", ())), family.documentation)
    for collector in set(REGISTRY._collector_to_names)
    for family in getattr(collector, "describe", collector.collect)() or collector.collect()
]))
"""

# What a library registers on its own has labels only in its samples.
_LABELS_OF_LIBRARIES = {
    "python_info": ["version", "implementation", "major", "minor", "patchlevel"],
    "python_gc_objects_collected": ["generation"],
    "python_gc_objects_uncollectable": ["generation"],
    "python_gc_collections": ["generation"],
}


class Metric(NamedTuple):
    """A metric as a scrape names it."""

    name: str
    type: str
    labels: tuple[str, ...]
    meaning: str

    @property
    def unit(self) -> str:
        """What its values are in."""
        if "seconds" in self.name:
            return "seconds"
        if "_num_" in self.name or ":num_" in self.name:
            return "count"
        if "bytes" in self.name:
            return "bytes"
        if self.name.endswith("_info"):
            return "always 1"
        if "kv_cache_usage" in self.name:
            return "share, 0 to 1"
        return "tokens" if "token" in self.name or "prefix_cache" in self.name else "count"


@cache
def registered(service: str) -> list[Metric]:
    """What a service registers, by name."""
    command = [sys.executable, "-c", _LIST, MODULES[service]]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    metrics = []
    for name, kind, labels, meaning in json.loads(done.stdout):
        shown = f"{name}_total" if kind == "counter" else name
        labels = labels or _LABELS_OF_LIBRARIES.get(name, [])
        metrics.append(Metric(shown, kind, tuple(labels), meaning))
    return sorted(metrics)


def table() -> str:
    """The table's text, those of every service first."""
    by_service = {service: registered(service) for service in SERVICES}
    common = set.intersection(*(set(metrics) for metrics in by_service.values()))
    sections = [("Every service", sorted(common))]
    sections += [
        (service, [metric for metric in metrics if metric not in common])
        for service, metrics in by_service.items()
    ]
    return "\n".join(line for title, metrics in sections for line in _section(title, metrics))


def _section(title: str, metrics: list[Metric]) -> Iterator[str]:
    yield f"### {title}\n"
    yield "| Name | Type | Labels | Unit | Meaning |"
    yield "|---|---|---|---|---|"
    for metric in metrics:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        meaning = metric.meaning.replace("|", "\\|")
        yield f"| `{metric.name}` | {metric.type} | {labels} | {metric.unit} | {meaning} |"
    yield ""


def main(arguments: list[str]) -> int:
    """Writes or checks the file; the exit code."""
    text = FILE.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    wanted = f"{before}{BEGIN}\n\n{table()}\n{END}{after}"
    if arguments == ["--check"]:
        if text != wanted:
            print("docs/metrics.md is stale: python -m scripts.metrics_table", file=sys.stderr)
        return int(text != wanted)
    FILE.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
