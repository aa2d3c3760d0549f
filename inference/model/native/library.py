"""Finds or compiles the native library: python -m inference.model.native.library FOLDER

The command compiles every CPU variant into FOLDER, as the build of an image does. Elsewhere the
first use compiles the library with the machine's C compiler, in 5 to 30 seconds, and caches it in
~/.cache/weir. Without a compiler or AVX2 the engine uses torch.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import logging
import shutil
import tempfile
from collections.abc import Set
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from inference.model.c_compiler import CompileError, find_compiler, run_compiler

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
SOURCES = ("decoder.c", "encoder.c", "gemm.c", "sampler.c", "pool.c")
HEADERS = (
    "attention.h",
    "avx2.h",
    "avx512.h",
    "buffers.h",
    "sample.h",
    "gemm.h",
    "lora.h",
    "noise.h",
    "pool.h",
    "simd.h",
)
COMPILER_FLAGS = ("-O3", "-std=gnu11", "-shared", "-fPIC", "-pthread")


@dataclass(frozen=True)
class Variant:
    """A CPU variant of the library; simd.h includes the header of its name."""

    name: str
    cpu_flags: tuple[str, ...]
    """Required flags of /proc/cpuinfo."""
    compiler_flags: tuple[str, ...]
    """One flag per feature instead of -march=native, so that images run on other machines."""


VARIANTS = (
    Variant(
        "avx512",
        ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16", "fma"),
        (
            "-mavx512f",
            "-mavx512bw",
            "-mavx512dq",
            "-mavx512vl",
            "-mavx512vnni",
            "-mavx512bf16",
            "-mfma",
            "-mprefer-vector-width=512",
        ),
    ),
    Variant("avx2", ("avx2", "fma", "f16c"), ("-mavx2", "-mfma", "-mf16c")),
)
"""In order of preference, fastest first."""


class Unavailable(Exception):
    """The native library cannot be used on this machine; the message is the reason."""


def load() -> ctypes.CDLL:
    """The fastest library for this CPU. Raises Unavailable."""
    return load_variant(best_variant(cpu_flags()))


@cache
def load_variant(variant: Variant) -> ctypes.CDLL:
    """The library of a variant that the CPU must support. Raises Unavailable."""
    name = _file_name(variant)
    for folder in (FOLDER, _cache_folder()):
        if (folder / name).is_file():
            return _open(folder / name)
    target = _cache_folder() / name
    compile_to(target, variant)
    logger.info("native library compiled", extra={"path": str(target)})
    return _open(target)


def lanes() -> int:
    """The number of floats in a vector of the library. Raises Unavailable."""
    return int(load().weir_lanes())


def best_variant(flags: Set[str]) -> Variant:
    """The first variant that a CPU with these flags supports.

    Raises Unavailable with the flags that the last variant lacks.
    """
    for variant in VARIANTS:
        missing = [flag for flag in variant.cpu_flags if flag not in flags]
        if not missing:
            return variant
    raise Unavailable(f"the CPU lacks {', '.join(missing)}")


def compile_to(target: Path, variant: Variant) -> None:
    """Compiles a variant to `target`, atomically: other processes may do the same.

    Raises Unavailable.
    """
    try:
        compiler = find_compiler()
    except CompileError as error:
        raise Unavailable(f"{error} and no compiled library") from error
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(dir=target.parent)
    except OSError as error:
        raise Unavailable(f"{target.parent} is not writable: {error}") from error
    try:
        made = Path(folder) / target.name
        sources = [str(FOLDER / name) for name in SOURCES]
        flags = [*COMPILER_FLAGS, *variant.compiler_flags]
        try:
            run_compiler(compiler, [*flags, "-o", str(made), *sources, "-lm"])
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


def _file_name(variant: Variant) -> str:
    """A name with a hash of the sources and flags, so a change gives another file."""
    digest = hashlib.sha256(" ".join((*COMPILER_FLAGS, *variant.compiler_flags)).encode())
    for name in (*SOURCES, *HEADERS):
        digest.update((FOLDER / name).read_bytes())
    return f"decoder-{variant.name}-{digest.hexdigest()[:16]}.so"


@cache
def cpu_flags() -> Set[str]:
    """The CPU's flags in /proc/cpuinfo; empty if it cannot be read."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())


def _cache_folder() -> Path:
    return Path("~/.cache/weir").expanduser()


def main() -> None:
    """The command-line entry point."""
    parser = argparse.ArgumentParser(prog="python -m inference.model.native.library")
    parser.description = "Compile every CPU variant of the native library into a folder."
    parser.add_argument("folder", type=Path, help="where to write the libraries (*.so)")
    folder: Path = parser.parse_args().folder
    for variant in VARIANTS:
        compile_to(folder / _file_name(variant), variant)


if __name__ == "__main__":
    main()
