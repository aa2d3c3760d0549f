"""Generates mesh/v1 from proto/mesh/v1, or checks that it is up to date."""

from __future__ import annotations

import argparse
import filecmp
import sys
import tempfile
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

PACKAGE = Path("mesh/v1")


def generate(root: Path, out: Path) -> None:
    """Writes the generated modules and their stubs below `out`."""
    binaries = Path(sys.executable).parent
    protos = sorted((root / "proto" / PACKAGE).glob("*.proto"))
    arguments = [
        "protoc",
        f"--proto_path={root / 'proto'}",
        f"--proto_path={Path(grpc_tools.__file__).parent / '_proto'}",
        f"--plugin=protoc-gen-mypy={binaries / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={binaries / 'protoc-gen-mypy_grpc'}",
        f"--python_out={out}",
        f"--grpc_python_out={out}",
        f"--mypy_out=readable_stubs,quiet:{out}",
        f"--mypy_grpc_out=quiet:{out}",
        *map(str, protos),
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed")
    # common.proto has no service: its gRPC module would be empty.
    for empty in (out / PACKAGE).glob("common_pb2_grpc.py*"):
        empty.unlink()


def check(root: Path) -> list[str]:
    """Names of the files in mesh/v1 that differ from freshly generated ones."""
    with tempfile.TemporaryDirectory() as scratch:
        generate(root, Path(scratch))
        fresh = Path(scratch) / PACKAGE
        committed = root / PACKAGE
        names = {path.name for folder in (fresh, committed) for path in folder.glob("*_pb2*.py*")}
        _, mismatch, errors = filecmp.cmpfiles(fresh, committed, sorted(names), shallow=False)
        return sorted([*mismatch, *errors])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="generate_proto", description=__doc__)
    parser.add_argument("root", type=Path, help="root of the repository")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 if a file is out of date"
    )
    arguments = parser.parse_args()
    if not arguments.check:
        for stale in (arguments.root / PACKAGE).glob("*_pb2*.py*"):
            stale.unlink()
        generate(arguments.root, arguments.root)
        print(f"generated {arguments.root / PACKAGE}")
        return
    stale_names = check(arguments.root)
    if stale_names:
        print(f"out of date with proto/{PACKAGE}: {', '.join(stale_names)}; run `make proto`")
        raise SystemExit(1)
    print(f"{PACKAGE} is up to date")


if __name__ == "__main__":
    main()
