"""Runs the machine's C compiler, for the native library and Triton's launcher."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence

TIMEOUT_SECONDS = 600


class CompileError(Exception):
    """There is no compiler, or it failed; the message is the reason."""


def find_compiler() -> str:
    """The compiler's path. Raises CompileError if there is none."""
    found = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not found:
        raise CompileError("there is no C compiler")
    return found


def run_compiler(compiler: str, arguments: Sequence[str]) -> None:
    """Runs the compiler and waits. Raises CompileError with the end of its error output."""
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
