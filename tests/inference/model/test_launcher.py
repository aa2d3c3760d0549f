"""Compiling Triton's launcher on a machine without a GPU and its driver."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="NO LAUNCHER IS TESTED: triton is not installed")

import triton

from inference.model.kernels import launcher

LOAD = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("cuda_utils", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(callable(module.launch), callable(module.load_binary))
"""


@pytest.fixture
def compiler() -> str:
    """The path of the machine's C compiler."""
    found = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not found:
        pytest.skip("NO LAUNCHER IS TESTED: there is no C compiler")
    return found


def test_it_is_compiled_and_installed(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton uses it; its only missing dependency is the driver, libcuda.so.1."""
    monkeypatch.setattr(launcher, "FOLDER", tmp_path)
    monkeypatch.setattr(triton.knobs.build, "impl", None)
    assert not launcher.install()
    if not (Path(sysconfig.get_config_var("INCLUDEPY")) / "Python.h").is_file():
        pytest.skip("NO LAUNCHER IS TESTED: Python's headers are not installed")
    path = launcher.compile_to(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    assert launcher.install()
    assert triton.knobs.build.impl(launcher.NAME, "source", "folder", [], [], [], []) == str(path)

    driver = tmp_path / "driver"
    driver.mkdir()
    without = subprocess.run(
        [sys.executable, "-c", LOAD, str(path)], capture_output=True, text=True, timeout=60
    )
    if without.returncode:  # on a machine without the driver
        assert "libcuda.so.1" in without.stderr
    launcher._compile_driver(compiler, driver)
    (driver / "libcuda.so").rename(driver / "libcuda.so.1")
    environment = {**os.environ, "LD_LIBRARY_PATH": str(driver)}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout.strip(), done.stderr) == ("True True", "")


def test_missing_tools_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The errors name a missing compiler, missing Python headers and a failed compiler."""
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "which", lambda _: None)
        with pytest.raises(launcher.CompileError, match="no C compiler"):
            launcher.compile_to(tmp_path)
    monkeypatch.setattr(shutil, "which", lambda _: "/bin/false")
    monkeypatch.setattr("sysconfig.get_config_var", lambda _: str(tmp_path))
    with pytest.raises(launcher.CompileError, match=r"no Python\.h; on Debian install python3-dev"):
        launcher.compile_to(tmp_path)
    (tmp_path / "Python.h").touch()
    with pytest.raises(launcher.CompileError, match="/bin/false failed"):
        launcher.compile_to(tmp_path)
