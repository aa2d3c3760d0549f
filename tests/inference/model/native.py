"""What tests of native code need: the library for each kind of vectors, whatever this CPU has."""

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
    """The `kernels` option of an engine that computes with one of `KERNELS`; may skip the test."""
    if name == "torch":
        return name
    use_variant(name, monkeypatch)
    return "native"


def use_variant(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes native code compute with these vectors, emulated where the CPU lacks them.

    Skips the test, and says so, where that cannot be.
    """
    variant = next(each for each in library.VARIANTS if each.name == name)
    if platform.machine() != "x86_64":
        pytest.skip(f"NOTHING NATIVE IS TESTED: this is {platform.machine()}")
    try:
        library.best_variant(library.cpu_flags())  # there is one: what is emulated needs AVX2 too
        if not library.cpu_flags().issuperset(variant.cpu_flags):
            variant = emulated(variant)
        loaded = library.load_variant(variant)
    except library.Unavailable as reason:
        pytest.skip(f"NOTHING NATIVE IS TESTED: {reason}")
    monkeypatch.setattr(library, "load", lambda: loaded)


def emulated(variant: library.Variant) -> library.Variant:
    """The same code, one lane after the other, on a CPU with AVX2."""
    digest = hashlib.sha256(EMULATION.read_bytes()).hexdigest()[:16]
    return replace(
        variant,
        # Unoptimised: what is unrolled for registers would take a minute to compile.
        compiler_flags=("-O0", "-w", "-mavx2", "-mfma", f"-DE={digest}", f"-I{EMULATION.parent}"),
    )
