"""Selects the native library's CPU variant in tests; emulates AVX-512 on other CPUs."""

from __future__ import annotations

import ctypes
import hashlib
import platform
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from inference.model.native import library

EMULATION = Path(__file__).parents[1] / "emulated" / "immintrin.h"
VARIANTS = [variant.name for variant in library.VARIANTS]
KERNELS = ["torch", *VARIANTS]


def use_kernels(name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The engine's `kernels` option for one of `KERNELS`; may skip the test."""
    if name == "torch":
        return name
    use_variant(name, monkeypatch)
    return "native"


def use_variant(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes native code use a CPU variant, emulated if the CPU lacks it.

    Skips the test with a message if that is impossible.
    """
    try:
        loaded = _load(name)
    except library.Unavailable as reason:
        pytest.skip(f"NOTHING NATIVE IS TESTED: {reason}")
    monkeypatch.setattr(library, "load", lambda: loaded)


@cache
def compile_all() -> None:
    """Compiles every variant that `use_variant` loads, if it is not in the cache.

    On a busy machine that takes minutes.
    """
    for name in VARIANTS:
        with suppress(library.Unavailable):
            _load(name)


def _load(name: str) -> ctypes.CDLL:
    """The library of a CPU variant, emulated if the CPU lacks it. Raises Unavailable."""
    variant = next(each for each in library.VARIANTS if each.name == name)
    if platform.machine() != "x86_64":
        raise library.Unavailable(f"this is {platform.machine()}")
    flags = library.cpu_flags()
    library.best_variant(flags)  # raises Unavailable: the emulation needs AVX2, too
    if not flags.issuperset(variant.cpu_flags):
        variant = emulated(variant)
    return library.load_variant(variant)


def emulated(variant: library.Variant) -> library.Variant:
    """A variant that computes the same code lane by lane, on a CPU with AVX2."""
    digest = hashlib.sha256(EMULATION.read_bytes()).hexdigest()[:16]
    return replace(
        variant,
        # Unoptimised: the unrolled loops would take a minute to compile.
        compiler_flags=(
            *("-O0", "-w", "-mavx2", "-mfma", "-mf16c"),
            f"-DE={digest}",
            f"-I{EMULATION.parent}",
        ),
    )
