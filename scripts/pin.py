"""Writes constraints.txt: the version of every package, and the hashes of its files.

uv resolves pyproject.toml for all platforms and takes the hashes from the package index. Pinned
versions stay, unless `--upgrade` is given. The hashes of torch's builds for CPUs come from
PyTorch's own index; without access to it, those of the pinned version stay.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path

from scripts.pinned_requirements import plain, read_pins

TORCH_INDEX = "https://download.pytorch.org/whl/cpu/torch/"
EXTRAS = ("dev", "image")
HEADER = """\
# Versions and hashes of all packages, for every platform. pip refuses constraints with hashes:
#   python scripts/pinned_requirements.py plain > pins.txt; pip install -c pins.txt -e '.[dev]'
# `make constraints` writes this file.
"""

_LINK = re.compile(
    r"torch-(?P<version>[0-9.]+)(?:%2B|\+)cpu-[^\"#]+#sha256=(?P<sha256>[0-9a-f]{64})"
)


def cpu_hashes(page: str, version: str) -> list[str]:
    """The hashes of torch's wheels for CPUs of this version, from a page of PyTorch's index."""
    links = _LINK.finditer(page)
    return sorted({f"sha256:{link['sha256']}" for link in links if link["version"] == version})


def with_hashes(text: str, name: str, hashes: Iterable[str]) -> str:
    """The requirements with further hashes of one package."""
    added = "".join(f" \\\n    --hash={each}" for each in hashes)
    block = re.compile(rf"^{name}==(?:.*\\\n)*.*$", re.MULTILINE)
    return block.sub(lambda found: found[0] + added, text, count=1)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="pin", description=__doc__)
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions")
    parser.add_argument("--uv", default="uv", help="path of uv")
    parser.add_argument("--file", type=Path, default=Path("constraints.txt"))
    arguments = parser.parse_args()
    before = arguments.file.read_text()
    command = [arguments.uv, "pip", "compile", "pyproject.toml", "--universal", "--quiet"]
    command += ["--python-version", "3.11", "--generate-hashes", "--no-header", "--no-annotate"]
    command += [f"--extra={extra}" for extra in EXTRAS]
    command += ["--upgrade"] if arguments.upgrade else []
    # uv keeps the versions that it finds in its output file, and would keep their hashes too.
    arguments.file.write_text(plain(before))
    subprocess.run([*command, "--output-file", str(arguments.file)], check=True)
    text = arguments.file.read_text()
    arguments.file.write_text(HEADER + with_hashes(text, "torch", _torch_cpu(before, text)))


def _torch_cpu(before: str, after: str) -> list[str]:
    """Hashes of torch's builds for CPUs that `after` lacks."""
    [torch] = [pin for pin in read_pins(after) if pin.name == "torch"]
    try:
        with urllib.request.urlopen(TORCH_INDEX, timeout=60) as response:
            return cpu_hashes(response.read().decode(), torch.version)
    except (OSError, urllib.error.URLError) as error:
        kept = [pin for pin in read_pins(before) if pin[:2] == torch[:2]]
        if not kept:
            sys.exit(f"{TORCH_INDEX} cannot be read, and torch {torch.version} is new: {error}")
        print(f"{TORCH_INDEX} cannot be read; its hashes stay as they are", file=sys.stderr)
        return [each for each in kept[0].hashes if each not in torch.hashes]


if __name__ == "__main__":
    main()
