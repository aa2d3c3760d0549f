"""Triton's kernels, in its interpreter: no GPU, but the code that runs on one.

In a process of its own: what Triton decorates is interpreted from the first import on, for ever.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "interpreter"
ROOT = FOLDER.parents[2]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("file", sorted(path.name for path in FOLDER.glob("check_*.py")))
def test_in_the_interpreter(file: str) -> None:
    """All checks of a file pass."""
    if find_spec("triton") is None:
        pytest.skip("NO KERNELS ARE TESTED: triton is not installed")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER / file)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=230
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
