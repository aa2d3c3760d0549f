"""Makes a base image on this machine, for tests without a container registry."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.images.podman import NoContainersError

ROOT = Path(__file__).resolve().parents[2]
BASE_IMAGE = "localhost/weir-base:debian"
SUITES = {(3, 11): "bookworm", (3, 13): "trixie"}
"""Debian release of each Python version; the wheels of `make wheels` must match it."""
PACKAGES = "usr-is-merged,python3,python3-venv,libstdc++6"
HOOKS = "/usr/share/mmdebstrap/hooks/maybe-merged-usr"
"""Merges /usr without the package usrmerge, which depends on Perl."""
UNNEEDED = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*")


def make_base(folder: Path) -> Path:
    """Makes an archive with a minimal Debian and Python, if it does not exist yet.

    Raises NoContainersError if mmdebstrap is missing or fails.
    """
    suite = SUITES.get(sys.version_info[:2])
    tool = shutil.which("mmdebstrap")
    if suite is None:
        raise NoContainersError(f"no Debian release has Python {sys.version_info[:2]}")
    if tool is None:
        raise NoContainersError("not installed: mmdebstrap")
    archive = folder / f"{suite}.tar"
    if not archive.exists():
        folder.mkdir(exist_ok=True)
        unfinished = archive.with_suffix(".tmp.tar")
        command = [tool, "--quiet", "--variant=essential", f"--include={PACKAGES}"]
        command.append(f"--hook-dir={HOOKS}")
        command += [f"--dpkgopt=path-exclude={path}" for path in UNNEEDED]
        command += ["--dpkgopt=force-unsafe-io", suite, str(unfinished)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False)
        if done.returncode:
            raise NoContainersError(f"mmdebstrap: {done.stderr.strip()[-500:]}")
        unfinished.rename(archive)
    return archive
