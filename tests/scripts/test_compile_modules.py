"""The modules that mypyc compiles."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from scripts.compile_modules import EXTENSION_SUFFIXES, MODULES, ROOT, remove

YIELDS = (ast.Yield, ast.YieldFrom)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_has_no_asynchronous_generator(name: str) -> None:
    """mypyc cannot compile one, and the compilation is not part of the tests."""
    tree = ast.parse((ROOT / name).read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef)]
    assert not [f.name for f in functions if any(isinstance(n, YIELDS) for n in ast.walk(f))]


def test_removing_leaves_only_the_sources(tmp_path: Path) -> None:
    """The modules and what they share; nothing else that is compiled."""
    suffix = EXTENSION_SUFFIXES[0]
    source = tmp_path / MODULES[0]
    source.parent.mkdir(parents=True)
    kept = [source, tmp_path / f"other{suffix}"]
    made = [source.with_suffix(suffix), tmp_path / f"0a__mypyc{suffix}"]
    for each in (*kept, *made):
        each.touch()
    assert remove(tmp_path) == len(made)
    assert sorted(each for each in tmp_path.rglob("*") if each.is_file()) == sorted(kept)
