"""Tests the Triton kernels without a GPU: in the interpreter, and by compiling them.

The checks run in separate processes, because Triton decides at import whether it interprets or
compiles kernels.
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
    """The kernels compute the same as torch's operations."""
    check(path, TRITON_INTERPRET="1")


@pytest.mark.parametrize("path", COMPILED, ids=lambda path: path.stem)
def test_compiled_for_several_gpus(path: Path, tmp_path: Path) -> None:
    """They compile within the resource limits of several GPU generations."""
    check(path, TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0")


def check(path: Path, **variables: str) -> None:
    """Runs all checks of a file in a process with these environment variables."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(path)]
    environment = {**os.environ, **variables}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=230
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
