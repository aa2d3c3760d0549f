"""Selects the native library's CPU variant in tests; emulates AVX-512 on other CPUs."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import replace
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
    variant = next(each for each in library.VARIANTS if each.name == name)
    if platform.machine() != "x86_64":
        pytest.skip(f"NOTHING NATIVE IS TESTED: this is {platform.machine()}")
    try:
        library.best_variant(
            library.cpu_flags()
        )  # raises Unavailable: the emulation needs AVX2, too
        if not library.cpu_flags().issuperset(variant.cpu_flags):
            variant = emulated(variant)
        loaded = library.load_variant(variant)
    except library.Unavailable as reason:
        pytest.skip(f"NOTHING NATIVE IS TESTED: {reason}")
    monkeypatch.setattr(library, "load", lambda: loaded)


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
