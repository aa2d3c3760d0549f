"""Finds the compiled decoder, or compiles it: python -m inference.native.library OUT

An image carries it ready; elsewhere the machine's C compiler makes it once, in a few seconds, and
it is kept. Without a compiler or without AVX-512 there is none, and torch computes the model.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path

from inference.c_compiler import CompileError, find_compiler, run_compiler

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
SOURCES = ("decoder.c", "drawer.c", "pool.c")
HEADERS = ("attention.h", "draw.h", "gemm.h", "noise.h", "pool.h", "simd.h")
CPU_FLAGS = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16", "fma")
"""As /proc/cpuinfo names them: Intel since Sapphire Rapids, AMD since Zen 4."""

# By feature instead of -march=native: a library that was built elsewhere must run here.
COMPILER_FLAGS = (
    "-O3",
    "-std=gnu11",
    "-shared",
    "-fPIC",
    "-pthread",
    "-mavx512f",
    "-mavx512bw",
    "-mavx512dq",
    "-mavx512vl",
    "-mavx512vnni",
    "-mavx512bf16",
    "-mfma",
    "-mprefer-vector-width=512",
)


class Unavailable(Exception):
    """Why the native decoder cannot be used here."""


@cache
def load() -> ctypes.CDLL:
    """The library. Raises Unavailable, always with the same reason."""
    missing = [flag for flag in CPU_FLAGS if flag not in _cpu_flags()]
    if missing:
        raise Unavailable(f"the CPU lacks {', '.join(missing)}")
    name = f"decoder-{_digest()}.so"
    for folder in (FOLDER, _cache_folder()):
        if (folder / name).is_file():
            return _open(folder / name)
    target = _cache_folder() / name
    compile_to(target)
    logger.info("native decoder compiled", extra={"path": str(target)})
    return _open(target)


def compile_to(target: Path) -> None:
    """Compiles the library; whole or not at all, whoever else does the same."""
    try:
        compiler = find_compiler()
    except CompileError as error:
        raise Unavailable(f"{error} and no compiled decoder") from error
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(dir=target.parent)
    except OSError as error:
        raise Unavailable(f"{target.parent} cannot be written: {error}") from error
    try:
        made = Path(folder) / target.name
        sources = [str(FOLDER / name) for name in SOURCES]
        try:
            run_compiler(compiler, [*COMPILER_FLAGS, "-o", str(made), *sources, "-lm"])
        except CompileError as error:
            raise Unavailable(str(error)) from error
        made.replace(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _open(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise Unavailable(f"{path} cannot be loaded: {error}") from error


def _digest() -> str:
    """Of all that the library depends on: another source is another file."""
    digest = hashlib.sha256(" ".join(COMPILER_FLAGS).encode())
    for name in (*SOURCES, *HEADERS):
        digest.update((FOLDER / name).read_bytes())
    return digest.hexdigest()[:16]


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())


def _cache_folder() -> Path:
    return Path("~/.cache/weir").expanduser()


if __name__ == "__main__":
    compile_to(Path(sys.argv[1]) / f"decoder-{_digest()}.so")
