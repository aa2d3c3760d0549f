"""Runs the machine's C compiler, for what is compiled where it is used."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence

TIMEOUT_SECONDS = 600


class CompileError(Exception):
    """Why something could not be compiled."""


def find_compiler() -> str:
    """Its path. Raises CompileError where there is none."""
    found = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not found:
        raise CompileError("there is no C compiler")
    return found


def run_compiler(compiler: str, arguments: Sequence[str]) -> None:
    """Blocks until it is done. Raises CompileError with the end of what it complained of."""
    try:
        subprocess.run(
            [compiler, *arguments],
            check=True,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
        )
    except subprocess.CalledProcessError as error:
        raise CompileError(f"{compiler} failed: {error.stderr.strip()[-500:]}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompileError(f"{compiler} cannot be run: {error}") from error
