"""Consistency of the project's files."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

from setuptools import find_packages

ROOT = Path(__file__).resolve().parents[1]
SERVICES = ("mesh", "gateway", "orchestrator", "tokenizer", "inference")


def test_every_package_is_installed() -> None:
    """A package that setuptools does not find would be missing from the images."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = {
        path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for service in SERVICES
        for path in (ROOT / service).rglob("__init__.py")
    }
    patterns = project["tool"]["setuptools"]["packages"]["find"]["include"]
    assert found == set(find_packages(str(ROOT), include=patterns))


def test_every_make_target_is_described() -> None:
    """`make help` lists every phony target."""
    lines = (ROOT / "Makefile").read_text().splitlines()
    phony = {line.split()[1] for line in lines if line.startswith(".PHONY:")}
    described = {line[3:].partition(":")[0] for line in lines if line.startswith("## ")}
    wanted = {"build", "run-local", "test", "lint", "fmt", "proto", "proto-check", "ci", "clean"}
    assert phony == described
    assert wanted <= phony


def test_every_target_of_ci_has_a_rule() -> None:
    """A dry run of `make ci` succeeds."""
    command = ["make", "--dry-run", "ci"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
