"""Prints the version of the images and the chart, which pyproject.toml defines.

With `--write`, also updates the files that repeat it.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

PLACES = {
    "charts/weir/Chart.yaml": r'^(?:version: |appVersion: ")([\w.+-]+)',
    "compose.yaml": r"image: weir/\w+:([\w.+-]+)",
    "gateway/Dockerfile": r"(?:^ARG VERSION=|--tag weir/\w+:)([\w.+-]+)",
    "orchestrator/Dockerfile": r"(?:^ARG VERSION=|--tag weir/\w+:)([\w.+-]+)",
    "tokenizer/Dockerfile": r"(?:^ARG VERSION=|--tag weir/\w+:)([\w.+-]+)",
    "inference/Dockerfile": r"(?:^ARG VERSION=|--tag weir/\w+:)([\w.+-]+)",
    "docs/images.md": r"(?:weir/\w+:|`TAG`, `REGISTRY` \| `)([\w.+]+)",
    "docs/deploy.md": r"weir/(?:\w+|\$image):([\w.+]+)",
}
"""Files that repeat the version, and the expression whose group is each occurrence."""


def version(root: Path = ROOT) -> str:
    """The version in pyproject.toml."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    return str(project["version"])


def outdated(root: Path = ROOT) -> dict[str, set[str]]:
    """The versions in files of PLACES that differ, by file; empty for a file without any."""
    wanted = version(root)
    found = {
        path: set(re.findall(pattern, (root / path).read_text(), re.MULTILINE))
        for path, pattern in PLACES.items()
    }
    return {path: versions for path, versions in found.items() if versions != {wanted}}


def write(root: Path = ROOT) -> None:
    """Updates the files of PLACES."""
    wanted = version(root)

    def replaced(match: re.Match[str]) -> str:
        start, end = (offset - match.start() for offset in match.span(1))
        return match[0][:start] + wanted + match[0][end:]

    for path, pattern in PLACES.items():
        text = (root / path).read_text()
        (root / path).write_text(re.sub(pattern, replaced, text, flags=re.MULTILINE))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="version", description=__doc__)
    parser.add_argument("--write", action="store_true", help="update the files that repeat it")
    if parser.parse_args().write:
        write()
    print(version())


if __name__ == "__main__":
    main()
