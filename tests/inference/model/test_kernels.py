"""Triton's kernels without a GPU: interpreted, and compiled for some that are not there.

In processes of their own: what Triton decorates is interpreted or compiled from the first import
on, for ever.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1]
ROOT = FOLDER.parents[1]
INTERPRETED = sorted((FOLDER / "interpreter").glob("check_*.py"))
COMPILED = sorted((FOLDER / "compiled").glob("check_*.py"))

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(
        find_spec("triton") is None, reason="NO KERNELS ARE TESTED: triton is not installed"
    ),
]


@pytest.mark.parametrize("path", INTERPRETED, ids=lambda path: path.stem)
def test_in_the_interpreter(path: Path) -> None:
    """They compute what torch's operations do."""
    check(path, TRITON_INTERPRET="1")


@pytest.mark.parametrize("path", COMPILED, ids=lambda path: path.stem)
def test_for_gpus_that_are_not_there(path: Path, tmp_path: Path) -> None:
    """They become machine code within the limits of several generations."""
    check(path, TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0")


def check(path: Path, **variables: str) -> None:
    """All checks of a file pass, in a process with these variables."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(path)]
    environment = {**os.environ, **variables}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=230
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
