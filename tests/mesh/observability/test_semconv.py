"""The names equal those of the installed conventions and are defined in one module."""

from __future__ import annotations

import ast
import re
from itertools import pairwise
from pathlib import Path

from opentelemetry.semconv._incubating.attributes import gen_ai_attributes, rpc_attributes

from mesh.observability import semconv
from tests.test_architecture import PACKAGES, name_of, own_files

CONSTANTS = {
    name: value
    for name, value in vars(semconv).items()
    if name.isupper() and isinstance(value, str) and re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", value)
}


def test_repeated_names_equal_those_of_the_package() -> None:
    """Each gen_ai and rpc name is in the conventions, as the same constant."""
    spelled = {n: v for n, v in CONSTANTS.items() if v.startswith(("gen_ai.", "rpc."))}
    known = {**vars(gen_ai_attributes), **vars(rpc_attributes)}
    assert len(spelled) > 20
    assert {name: known.get(name) for name in spelled} == spelled


def test_no_name_is_deprecated() -> None:
    """None of the RPC names is marked as deprecated in the package."""
    documented = _documented(rpc_attributes.__file__ or "")
    deprecated = {name for name, doc in documented if "Deprecated" in doc}
    assert {"RPC_SYSTEM", "RPC_GRPC_STATUS_CODE"} <= deprecated
    assert deprecated & CONSTANTS.keys() == set()


def test_own_names_begin_with_weir() -> None:
    """A name without a convention begins with `weir.`."""
    conventional = ("gen_ai.", "rpc.", "http.", "url.", "server.", "client.", "network.")
    others = [v for v in CONSTANTS.values() if not v.startswith(conventional)]
    own = [v for v in others if not v.startswith(("error.", "service.", "user_agent."))]
    assert own
    assert [value for value in own if not value.startswith("weir.")] == []


def test_names_are_not_repeated_as_literals() -> None:
    """Other modules use the constants of mesh.observability.semconv."""
    offenders = [
        f"{name_of(path)}:{node.lineno}: {node.value}"
        for path in own_files(*PACKAGES)
        if name_of(path) != "mesh/observability/semconv.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and (node.value in CONSTANTS.values() or node.value.startswith(("gen_ai.", "rpc.")))
    ]
    assert offenders == []


def _documented(path: str) -> list[tuple[str, str]]:
    """The constants of a module, each with its docstring."""
    body = ast.parse(Path(path).read_text()).body
    return [
        (first.target.id, str(second.value.value))
        for first, second in pairwise(body)
        if isinstance(first, ast.AnnAssign)
        and isinstance(first.target, ast.Name)
        and isinstance(second, ast.Expr)
        and isinstance(second.value, ast.Constant)
    ]
