"""Tests the Triton kernels without a GPU: in the interpreter, and by compiling them.

The checks run in separate processes, because Triton decides at import whether it interprets or
compiles kernels.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1]
ROOT = FOLDER.parents[1]
INTERPRETED = sorted((FOLDER / "interpreter").glob("check_*.py"))
COMPILED = sorted((FOLDER / "compiled").glob("check_*.py"))

pytestmark = [
    pytest.mark.gpu_code,
    pytest.mark.timeout(240),
    pytest.mark.skipif(
        find_spec("triton") is None, reason="NO KERNELS ARE TESTED: triton is not installed"
    ),
]


def test_in_the_interpreter() -> None:
    """The kernels compute the same as torch's operations."""
    check(INTERPRETED, TRITON_INTERPRET="1")


def test_compiled_for_several_gpus(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """They compile within the resource limits of several GPU generations.

    Triton's cache, whose keys have hashes of the sources and of the compiler, is kept from run to
    run: a kernel is compiled again only after a change.
    """
    cache = getattr(request.config, "cache", None)
    folder = tmp_path if cache is None else cache.mkdir("triton")
    check(COMPILED, TRITON_CACHE_DIR=str(folder), TRITON_INTERPRET="0")


def check(paths: Sequence[Path], **variables: str) -> None:
    """Runs all checks of these files in a process with these environment variables."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, paths)]
    environment = {**os.environ, **variables}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=230
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
