"""Compiles Triton's launcher ahead of time: python -m inference.model.kernels.launcher FOLDER

Triton generates kernels without a C compiler, but launches them through a C extension that it
compiles at the first use. Container images have no compiler, so their build runs this module; it
needs neither a GPU nor its driver.
"""

from __future__ import annotations

import argparse
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
"""Triton's name of the extension module."""

_NVIDIA = Path(triton.__file__).parent / "backends" / "nvidia"


def install() -> bool:
    """Makes Triton use the launcher in this folder; returns False if there is none for it.

    Without a precompiled launcher Triton searches for a compiler itself.
    """
    path = FOLDER / _file_name()
    if not path.is_file():
        return False

    def prebuilt(name: str, *_: Any) -> str:
        assert name == NAME, f"{name} was not compiled ahead of time"
        return str(path)

    knobs.build.impl = prebuilt
    return True


def compile_to(folder: Path) -> Path:
    """Compiles the launcher for this Triton and Python into `folder`, atomically.

    Raises CompileError.
    """
    compiler = find_compiler()
    headers = Path(sysconfig.get_config_var("INCLUDEPY"))
    if not (headers / "Python.h").is_file():
        raise CompileError(f"{headers} has no Python.h; on Debian install python3-dev")
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
    """Compiles a stub of NVIDIA's driver library to link against."""
    source = (_NVIDIA / "driver.c").read_text()
    names = sorted(set(re.findall(r"\b(cu[A-Z]\w*)\s*\(", source)))
    empty = folder / "empty.c"
    empty.write_text("".join(f"int {name}(void) {{ return 1; }}\n" for name in names))
    library = folder / "libcuda.so"
    soname = "-Wl,-soname,libcuda.so.1"
    run_compiler(compiler, ["-shared", "-fPIC", soname, "-o", str(library), str(empty)])
    return library


def _file_name() -> str:
    """A name that changes with the versions of Triton and Python."""
    digest = hashlib.sha256((_NVIDIA / "driver.c").read_bytes()).hexdigest()[:16]
    return f"launcher-{digest}{sysconfig.get_config_var('EXT_SUFFIX')}"


def main() -> None:
    """The command-line entry point; prints the path of the compiled launcher."""
    parser = argparse.ArgumentParser(prog="python -m inference.model.kernels.launcher")
    parser.description = "Compile Triton's launcher for this Triton and Python into a folder."
    parser.add_argument("folder", type=Path, help="where to write the launcher (*.so)")
    try:
        print(compile_to(parser.parse_args().folder))
    except CompileError as error:
        sys.exit(f"Triton's launcher cannot be compiled: {error}")


if __name__ == "__main__":
    main()
