"""Triton's launcher, compiled beforehand: python -m inference.model.kernels.launcher FOLDER

Triton makes kernels itself, but starts them by a piece of C, which it compiles at the first use.
An image has no compiler, so this is done while it is built, without a GPU or its driver.
"""

from __future__ import annotations

import hashlib
import re
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton import knobs

from inference.model.c_compiler import CompileError, find_compiler, run_compiler

FOLDER = Path(__file__).parent
NAME = "cuda_utils"
"""What Triton calls the module."""

_NVIDIA = Path(triton.__file__).parent / "backends" / "nvidia"


def install() -> bool:
    """Has Triton take the launcher beside this file. False where none was compiled for it.

    Then Triton looks for a compiler itself.
    """
    path = FOLDER / _file_name()
    if not path.is_file():
        return False

    def prebuilt(name: str, *_: Any) -> str:
        assert name == NAME, f"{name} was not compiled beforehand"
        return str(path)

    knobs.build.impl = prebuilt
    return True


def compile_to(folder: Path) -> Path:
    """The launcher for this Triton and this Python, whole or not at all. Raises CompileError."""
    compiler = find_compiler()
    headers = Path(sysconfig.get_config_var("INCLUDEPY"))
    if not (headers / "Python.h").is_file():
        raise CompileError(f"{headers} has no Python.h; on Debian it comes with python3-dev")
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        driver = _compile_driver(compiler, Path(temporary))
        made = Path(temporary) / "launcher.so"
        run_compiler(
            compiler,
            [
                *("-O3", "-shared", "-fPIC", "-o", str(made)),
                *(str(_NVIDIA / "driver.c"), str(driver)),
                *(f"-I{_NVIDIA / 'include'}", f"-I{headers}", "-ldl"),
            ],
        )
        return made.replace(folder / _file_name())


def _compile_driver(compiler: str, folder: Path) -> Path:
    """A library with the names of NVIDIA's driver in it, to link against in its absence."""
    source = (_NVIDIA / "driver.c").read_text()
    names = sorted(set(re.findall(r"\b(cu[A-Z]\w*)\s*\(", source)))
    empty = folder / "empty.c"
    empty.write_text("".join(f"int {name}(void) {{ return 1; }}\n" for name in names))
    library = folder / "libcuda.so"
    soname = "-Wl,-soname,libcuda.so.1"
    run_compiler(compiler, ["-shared", "-fPIC", soname, "-o", str(library), str(empty)])
    return library


def _file_name() -> str:
    """Of all that it depends on: another Triton or Python has another file."""
    digest = hashlib.sha256((_NVIDIA / "driver.c").read_bytes()).hexdigest()[:16]
    return f"launcher-{digest}{sysconfig.get_config_var('EXT_SUFFIX')}"


if __name__ == "__main__":
    try:
        print(compile_to(Path(sys.argv[1])))
    except CompileError as error:
        sys.exit(f"Triton's launcher: {error}")
