"""Finding and compiling the native library, and the fallback to torch."""

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
def isolate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Isolates each test: no memoised library, an empty cache, a CPU with AVX2 only.

    The compiler does not optimise, which takes most of its time; the libraries of the other
    tests are optimised.
    """
    unoptimised = tuple("-O0" if flag == "-O3" else flag for flag in library.COMPILER_FLAGS)
    assert unoptimised != library.COMPILER_FLAGS
    monkeypatch.setattr(library, "COMPILER_FLAGS", unoptimised)
    monkeypatch.setattr(library, "load_variant", library.load_variant.__wrapped__)
    monkeypatch.setattr(library, "cpu_flags", lambda: {"avx2", "fma", "f16c"})
    monkeypatch.setattr(library, "_cache_folder", lambda: tmp_path / "cache")


def test_it_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cached library needs no compiler; no temporary files are left."""
    first = library.load()
    assert isinstance(first, ctypes.CDLL)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".so"]
    monkeypatch.setattr(library.shutil, "which", lambda _: None)
    assert library.load()._name == first._name


def test_a_missing_cpu_feature_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason names the features that the slowest variant needs."""
    monkeypatch.setattr(library, "cpu_flags", lambda: {"avx", "avx512f", "fma", "f16c"})
    with pytest.raises(library.Unavailable, match=r"^the CPU lacks avx2$"):
        library.load()


def test_the_widest_supported_vectors_are_used() -> None:
    """A CPU that lacks any part of AVX-512 uses AVX2."""
    wide, narrow = library.VARIANTS
    flags = {*wide.cpu_flags, *narrow.cpu_flags, "sse4_2"}
    assert library.best_variant(flags) is wide
    for flag in set(wide.cpu_flags) - {"fma"}:
        assert library.best_variant(flags - {flag}) is narrow


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the code is for x86 only")
@pytest.mark.parametrize("variant", library.VARIANTS, ids=lambda variant: variant.name)
def test_every_variant_compiles(variant: library.Variant, tmp_path: Path) -> None:
    """On any CPU, as in the build of an image."""
    library.compile_to(tmp_path / "made.so", variant)
    assert (tmp_path / "made.so").stat().st_size > 0


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason says that there is no compiler."""
    monkeypatch.setattr(library.shutil, "which", lambda _: None)
    with pytest.raises(library.Unavailable, match="no C compiler"):
        library.load()


def test_a_compiler_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The reason contains its error output; no partial file is left."""
    monkeypatch.setattr(library, "COMPILER_FLAGS", ("-no-such-flag",))
    with pytest.raises(library.Unavailable, match="no-such-flag"):
        library.load()
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """The cache folder's path is a file."""
    (tmp_path / "cache").write_text("")
    with pytest.raises(library.Unavailable, match="is not writable"):
        library.load()


def test_an_engine_falls_back_to_torch(
    model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the library `auto` uses torch, and `native` fails with the reason."""

    def unavailable() -> ctypes.CDLL:
        raise library.Unavailable("there is no C compiler and no compiled library")

    monkeypatch.setattr(library, "load", unavailable)
    defaults = EngineOptions.defaults(model_folder("llama-tied-gqa"), "m")
    options = replace(defaults, kv_cache_tokens=256)
    load_engine(options)
    with pytest.raises(ModelLoadError, match="INFERENCE_KERNELS is native, but there is no C"):
        load_engine(replace(options, kernels="native"))
