"""Generates the schema, README, defaults and list of images of a chart, or checks them."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import yaml

from scripts.chart.defaults import build_defaults
from scripts.chart.images import list_images
from scripts.chart.readme import build_readme
from scripts.chart.schema import build_schema
from scripts.chart.values import read_values


def generate(chart: Path) -> dict[str, str]:
    """The generated files' contents by name, from values.yaml, Chart.yaml and README.md.in."""
    values = read_values(chart / "values.yaml")
    about = yaml.safe_load((chart / "Chart.yaml").read_text())
    schema = build_schema(values, f"Values of the {about['name']} chart")
    return {
        "values.schema.json": json.dumps(schema, indent=1, ensure_ascii=False) + "\n",
        "README.md": build_readme(values, (chart / "README.md.in").read_text()),
        "files/defaults.yaml": build_defaults(values),
        "images.txt": "\n".join(list_images(values, about["appVersion"])) + "\n",
    }


def stale(chart: Path) -> list[str]:
    """Names of the generated files that are out of date."""
    fresh = generate(chart)
    committed = {name: chart / name for name in fresh}
    return [
        name
        for name, path in committed.items()
        if not path.exists() or path.read_text() != fresh[name]
    ]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="generate_chart", description=__doc__)
    parser.add_argument("chart", type=Path, help="folder of the chart")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 if a file is out of date"
    )
    arguments = parser.parse_args()
    if not arguments.check:
        for name, text in generate(arguments.chart).items():
            (arguments.chart / name).write_text(text)
        return
    names = stale(arguments.chart)
    for name in names:
        print(f"{arguments.chart / name}: out of date; run `make chart`", file=sys.stderr)
    sys.exit(1 if names else 0)


if __name__ == "__main__":
    main()
