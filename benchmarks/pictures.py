"""Plots the figures in docs/benchmarks as SVG files.

python -m benchmarks.pictures
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "benchmarks"
OURS, THEIRS = "#0b6e99", ("#c4682b", "#8a8f98", "#7b5ea7", "#b8a13c")


def colours(names: list[str], ours: Callable[[str], bool]) -> dict[str, tuple[str, str]]:
    """A colour and a line style for each name; ours are blue."""
    others = iter(THEIRS)
    styles = iter(("-", "--", ":"))
    return {name: (OURS, next(styles)) if ours(name) else (next(others), "-") for name in names}


def axis(axes: Axes, title: str, x: str, y: str) -> None:
    """Sets title, labels and grid."""
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(visible=True, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def log2_streams(axes: Axes, values: list[int]) -> None:
    """A log2 axis of numbers of streams, with a tick for each."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(values, [str(value) for value in values])
    axes.minorticks_off()


def engine(figures: dict[str, Any]) -> None:
    """Decode throughput against streams, by contender."""
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for name, (colour, style) in colours(list(figures), lambda n: n.startswith("weir")).items():
        streams = sorted(map(int, figures[name]))
        rates = [
            statistics.median(row["decode_tokens_per_second"] for row in figures[name][str(n)])
            for n in streams
        ]
        axes.plot(streams, rates, style, color=colour, marker="o", markersize=4, label=name)
    log2_streams(axes, streams)
    axes.set_ylim(bottom=0)
    axis(axes, "Decode, SmolLM2-135M's shape, two cores", "streams", "tokens/s")
    axes.legend(frameon=False, fontsize=9)
    save(figure, "engine")


def relay(figures: dict[str, Any]) -> None:
    """CPU time of gateway and orchestrator per token, against streams."""
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for pace, style in (("full speed", "-"), ("paced", "--")):
        rows = [row for row in figures["rows"] if row["pace"] == pace]
        streams = [int(row["streams"]) for row in rows]
        costs = [row["cpu_us_per_token"] for row in rows]
        axes.plot(streams, costs, style, color=OURS, marker="o", markersize=4, label=pace)
    log2_streams(axes, streams)
    axes.set_yscale("log")
    axis(axes, "The relay: gateway and orchestrator", "streams", "CPU µs a token")
    axes.legend(frameon=False, fontsize=9)
    save(figure, "relay")


def queue_vs_direct(figures: dict[str, Any]) -> None:
    """Added time to the first token against clients, by architecture."""
    figure, axes = pyplot.subplots(figsize=(7, 4))
    rows = figures["rows"]
    names = list(dict.fromkeys(row["shape"] for row in rows))
    for name, (colour, style) in colours(names, lambda n: n == "direct").items():
        mine = [row for row in rows if row["shape"] == name]
        clients = [row["clients"] for row in mine]
        added = [row["added_ttft_p50_ms"] for row in mine]
        axes.plot(clients, added, style, color=colour, marker="o", markersize=4, label=name)
    log2_streams(axes, clients)
    axes.set_yscale("symlog", linthresh=1)
    axis(axes, "Added to the engine's time to the first token, median", "clients", "ms")
    axes.legend(frameon=False, fontsize=9)
    save(figure, "queue_vs_direct")


def gpu(figures: dict[str, Any]) -> None:
    """Greedy decode throughput against streams by contender, and the roofline."""
    figure, axes = pyplot.subplots(figsize=(7, 4))
    rows = [row for row in figures["rows"] if row["kind"] == "decode" and not row["sampled"]]
    names = list(dict.fromkeys(row["contender"] for row in rows if row["rate"] is not None))
    for name, (colour, style) in colours(names, lambda n: n.startswith("weir")).items():
        streams = [row["size"] for row in mine_of(rows, name)]
        rates = [row["rate"] for row in mine_of(rows, name)]
        axes.plot(streams, rates, style, color=colour, marker="o", markersize=4, label=name)
    # The roofline for the weight type of the first contender.
    limits = [row["roofline"] for row in mine_of(rows, names[0])]
    axes.plot(streams, limits, ":", color="#444444", label=f"roofline of {names[0]}")
    log2_streams(axes, streams)
    axes.set_yscale("log")
    axis(axes, f"Decode, {figures['shape']}, {figures['device']['name']}", "streams", "tokens/s")
    axes.legend(frameon=False, fontsize=9)
    save(figure, "gpu")


def mine_of(rows: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """A contender's rows, by streams."""
    return sorted((row for row in rows if row["contender"] == name), key=lambda row: row["size"])


def save(figure: Any, name: str) -> None:
    """Writes a reproducible SVG file."""
    figure.tight_layout()
    figure.savefig(FOLDER / f"{name}.svg", metadata={"Date": None})
    pyplot.close(figure)


PICTURES = {"engine": engine, "gpu": gpu, "relay": relay, "queue_vs_direct": queue_vs_direct}


def main() -> None:
    """Plots every benchmark whose JSON file exists."""
    matplotlib.rcParams.update({"svg.hashsalt": "weir", "font.size": 10})
    for name, plot in PICTURES.items():
        source = FOLDER / f"{name}.json"
        if source.is_file():
            plot(json.loads(source.read_text()))


if __name__ == "__main__":
    main()
