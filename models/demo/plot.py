"""Plots the loss curve: python -m models.demo.plot reads loss.csv and writes loss.svg."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parent
WIDTH, HEIGHT, MARGIN = 860, 320, 48
SMOOTHING = 0.1
COLORS = {"A": "#2a6fdb", "B": "#c76b00", "C": "#1f8a4c"}
NAMES = {"A": "A copying", "B": "B choosing", "C": "C real searches"}
TICKS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


def render(rows: Sequence[dict[str, str]]) -> str:
    """The SVG of the smoothed loss, on a logarithmic scale, over tokens; a colour per phase."""
    most = float(rows[-1]["tokens"])
    low, high = math.log(TICKS[0]), math.log(TICKS[-1])

    def place(tokens: float, loss: float) -> str:
        x = MARGIN + tokens / most * (WIDTH - 2 * MARGIN)
        level = (math.log(min(max(loss, TICKS[0]), TICKS[-1])) - low) / (high - low)
        return f"{x:.1f},{HEIGHT - MARGIN - level * (HEIGHT - 2 * MARGIN):.1f}"

    lines: dict[str, list[str]] = {}
    mean = float(rows[0]["loss"])
    for row in rows:
        mean += SMOOTHING * (float(row["loss"]) - mean)
        lines.setdefault(row["phase"][0], []).append(place(float(row["tokens"]), mean))
    parts = [_frame(most, place)]
    for number, (phase, points) in enumerate(lines.items()):
        color = COLORS[phase]
        parts.append(
            f'<polyline fill="none" stroke="{color}" points="{" ".join(points)}"/>'
            f'<text x="{MARGIN + 12 + 150 * number}" y="{MARGIN - 12}" fill="{color}">'
            f"{NAMES[phase]}</text>"
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="12">'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _frame(most: float, place: object) -> str:
    assert callable(place)
    parts = []
    for tick in TICKS:
        begin, end = place(0, tick), place(most, tick)
        y = begin.partition(",")[2]
        parts.append(
            f'<polyline stroke="#ddd" points="{begin} {end}"/>'
            f'<text x="8" y="{float(y) + 4:.1f}" fill="#555">{tick:g}</text>'
        )
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = place(most * share, 1).partition(",")[0]
        parts.append(
            f'<text x="{x}" y="{HEIGHT - MARGIN + 20}" text-anchor="middle" fill="#555">'
            f"{most * share / 1e6:.1f} M tokens</text>"
        )
    return "".join(parts)


def main() -> None:
    """The command-line entry point."""
    with (FOLDER / "loss.csv").open() as file:
        rows = list(csv.DictReader(file))
    (FOLDER / "loss.svg").write_text(render(rows))


if __name__ == "__main__":
    main()
