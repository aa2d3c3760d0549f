"""Compiles the modules that every token passes with mypyc, next to their sources.

    python -m scripts.compile_modules            (needs a C compiler; takes two minutes)
    python -m scripts.compile_modules --remove

Python imports the compiled modules instead of their sources. Compile again after a change, and
remove them before tests, which replace parts of modules. Without them all works, more slowly.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

MODULES = (
    "gateway/connection/chunk_writer.py",
    "gateway/http/json_text.py",
    "gateway/observability/usage_total.py",
    "gateway/openai/chunks.py",
    "gateway/streaming/direct_path.py",
    "gateway/streaming/event_writer.py",
    "mesh/protocol/deltas.py",
    "mesh/protocol/tokens.py",
    "mesh/rpc/multiplex/caller.py",
    "mesh/rpc/multiplex/service.py",
    "mesh/rpc/multiplex/wire.py",
    "mesh/text/detokenizer.py",
    "mesh/text/held_text.py",
    "mesh/text/stop_strings.py",
    "orchestrator/routing/direct_path.py",
    "orchestrator/routing/read_ahead.py",
    "orchestrator/running_generation.py",
    "orchestrator/text/answer.py",
    "orchestrator/text/assembler.py",
)
"""What runs for each message of a stream. mypyc has no asynchronous generators, so modules with
one cannot be here."""


def remove(root: Path) -> int:
    """Removes what an earlier call has made; returns the number of files."""
    suffix = EXTENSION_SUFFIXES[0]
    modules = [(root / name).with_suffix(suffix) for name in MODULES]
    found = [each for each in (*modules, *root.glob(f"*__mypyc{suffix}")) if each.exists()]
    for each in found:
        each.unlink()
    return len(found)


def compile_in(root: Path) -> None:
    """Compiles the modules. Raises CalledProcessError with the compiler's output on stderr."""
    command = [sys.executable, "-m", "mypyc", *MODULES]
    subprocess.run(command, cwd=root, env={**os.environ, "MYPYC_OPT_LEVEL": "2"}, check=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="scripts.compile_modules", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--remove", action="store_true", help="remove the compiled modules")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder with the packages")
    options = parser.parse_args()
    removed = remove(options.root)
    if options.remove:
        print(f"removed {removed} files")
        return
    compile_in(options.root)
    print(f"compiled {len(MODULES)} modules")


if __name__ == "__main__":
    main()
