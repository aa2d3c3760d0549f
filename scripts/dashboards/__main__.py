"""Writes charts/weir/dashboards, and the alerts on objectives in charts/weir/alerts.

With `--check`: writes nothing, exits with 1 if a file is out of date.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from scripts.dashboards.engine import engine
from scripts.dashboards.overview import overview
from scripts.dashboards.pods import pods
from scripts.dashboards.search import search
from scripts.dashboards.slo import alert_rules
from scripts.dashboards.trace import weir_trace

CHART = Path(__file__).resolve().parents[2] / "charts" / "weir"
FOLDER = CHART / "dashboards"
ALERTS = CHART / "alerts" / "slo.yaml"


def files() -> dict[Path, str]:
    """The generated files, by path."""
    made = [overview(), engine(), pods(), search(), weir_trace()]
    dashboards = {
        FOLDER / f"{each['uid'].removeprefix('weir-')}.json": json.dumps(each, indent=2) + "\n"
        for each in made
    }
    return {**dashboards, ALERTS: alert_rules()}


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    wanted = files()
    found = {path: path.read_text() for path in [*FOLDER.glob("*.json"), ALERTS] if path.exists()}
    if arguments == ["--check"]:
        stale = [path for path in wanted | found if found.get(path) != wanted.get(path)]
        for path in stale:
            print(f"{path.name} is out of date: run python -m scripts.dashboards", file=sys.stderr)
        return int(bool(stale))
    for path in found.keys() - wanted.keys():
        path.unlink()
    for path, content in wanted.items():
        path.write_text(content)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
