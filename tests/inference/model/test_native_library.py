"""How the native decoder's library is found, compiled, and done without."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from inference.engine.errors import ModelLoadError
from inference.model.loading import EngineOptions, load_engine
from inference.model.native import library

pytestmark = pytest.mark.timeout(300)  # some seconds of compiling, on busy cores far more


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each test looks anew, in a home of its own, on a CPU that has AVX2 and no more."""
    monkeypatch.setattr(library, "load_variant", library.load_variant.__wrapped__)
    monkeypatch.setattr(library, "cpu_flags", lambda: {"avx2", "fma"})
    monkeypatch.setattr(library, "_cache_folder", lambda: tmp_path / "cache")


def test_the_compiler_makes_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was compiled is found again without a compiler, and nothing else is left."""
    first = library.load()
    assert isinstance(first, ctypes.CDLL)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".so"]
    monkeypatch.setattr(library.shutil, "which", lambda _: None)
    assert library.load()._name == first._name


def test_a_missing_cpu_feature_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason says what the CPU lacks for the slowest."""
    monkeypatch.setattr(library, "cpu_flags", lambda: {"avx", "avx512f", "fma"})
    with pytest.raises(library.Unavailable, match=r"^the CPU lacks avx2$"):
        library.load()


def test_the_widest_vectors_are_taken() -> None:
    """Whatever else a CPU has; one that lacks a part of AVX-512 takes AVX2."""
    wide, narrow = library.VARIANTS
    flags = {*wide.cpu_flags, *narrow.cpu_flags, "sse4_2"}
    assert library.best_variant(flags) is wide
    for flag in set(wide.cpu_flags) - {"fma"}:
        assert library.best_variant(flags - {flag}) is narrow


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the code is for x86")
@pytest.mark.parametrize("variant", library.VARIANTS, ids=lambda variant: variant.name)
def test_each_compiles(variant: library.Variant, tmp_path: Path) -> None:
    """On any CPU, as when an image is built."""
    library.compile_to(tmp_path / "made.so", variant)
    assert (tmp_path / "made.so").stat().st_size > 0


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason says that there is none."""
    monkeypatch.setattr(library.shutil, "which", lambda _: None)
    with pytest.raises(library.Unavailable, match="no C compiler"):
        library.load()


def test_a_compiler_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its own words are kept; nothing half made stays behind."""
    monkeypatch.setattr(library, "COMPILER_FLAGS", ("-no-such-flag",))
    with pytest.raises(library.Unavailable, match="no-such-flag"):
        library.load()
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """A file stands where the folder should be."""
    (tmp_path / "cache").write_text("")
    with pytest.raises(library.Unavailable, match="is not writable"):
        library.load()


def test_an_engine_goes_on_with_torch(
    model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the library `auto` takes torch, and `native` says why it cannot be had."""

    def unavailable() -> ctypes.CDLL:
        raise library.Unavailable("there is no C compiler and no compiled library")

    monkeypatch.setattr(library, "load", unavailable)
    defaults = EngineOptions.defaults(model_folder("llama-tied-gqa"), "m")
    options = replace(defaults, kv_cache_tokens=256)
    load_engine(options)
    with pytest.raises(ModelLoadError, match="INFERENCE_KERNELS is native, but there is no C"):
        load_engine(replace(options, kernels="native"))
