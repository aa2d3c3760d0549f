"""Architecture rules, checked in the source code: which package may import what."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SERVICES = ("gateway", "orchestrator", "tokenizer", "inference")
PACKAGES = ("mesh", *SERVICES)
GENERATED = "mesh/v1/"
GENERATED_PACKAGES = ("mesh.v1.", "smg_grpc_proto.")

ENVIRONMENT_READERS = {
    "mesh/rpc/polling.py",
    "mesh/process/settings.py",
    "mesh/observability/telemetry.py",
}
"""The only files that read environment variables; other code uses settings."""

GENERATED_TYPES_IN = {
    "mesh/hub/vllm_tokenizer.py",
    "mesh/protocol",
    "gateway/upstream/client.py",
    "gateway/peers",
    "orchestrator/clients",
    "orchestrator/routing/backends",
    "orchestrator/routing/backends/vllm_grpc",
    "orchestrator/service.py",
    "tokenizer/service.py",
    "inference/api/service.py",
    "inference/api/vllm_engine",
    "mesh/rpc/kept_traces.py",
    "mesh/rpc/multiplex",
}
"""The only files and folders that import generated protobuf types: servicers, clients and the
mapping of the shared values."""

DEFINED_AGAIN = {
    # The engine's parameters: a subclass in which every default is filled in.
    "inference/sampling/sampling_params.py": {"SamplingParams"},
    # A pydantic schema of the public API.
    "gateway/schemas/chat.py": {"ChatMessage"},
}
"""Classes of a service with the name of a shared value, and why."""

ONLY_IN = {
    "torch": "inference",
    "triton": "inference",
    "safetensors": "inference",
    "starlette": "gateway",
    "uvicorn": "gateway",
    "jinja2": "tokenizer",
}
"""Libraries that only one package may import."""

FORBIDDEN = {"transformers", "pytest", "tests", "hypothesis"}
"""Libraries that only tests, scripts and benchmarks may import."""


def own_files(*packages: str) -> list[Path]:
    found = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    return [path for path in found if not name_of(path).startswith(GENERATED)]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports_of(path: Path) -> Iterator[str]:
    """All modules and names that a file imports, at the top or in functions."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(path.relative_to(ROOT).parts[:-1]) if node.level else ""
            module = ".".join(filter(None, (package, node.module)))
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def top_imports_of(path: Path) -> set[str]:
    return {module.partition(".")[0] for module in imports_of(path)}


def violations(packages: tuple[str, ...], *forbidden: str) -> list[str]:
    return [
        f"{name_of(path)} imports {module}"
        for path in own_files(*packages)
        for module in sorted(top_imports_of(path) & set(forbidden))
    ]


@pytest.mark.parametrize("service", SERVICES)
def test_services_never_import_one_another(service: str) -> None:
    """They share only `mesh` and the protobuf contracts."""
    assert violations((service,), *(set(SERVICES) - {service})) == []


def test_mesh_imports_no_service() -> None:
    """Services depend on mesh, not the reverse."""
    assert violations(("mesh",), *SERVICES) == []


@pytest.mark.parametrize(("library", "package"), ONLY_IN.items())
def test_some_libraries_belong_to_one_package(library: str, package: str) -> None:
    """Only inference imports torch, only the gateway starlette, only the tokenizer jinja2."""
    others = tuple(other for other in PACKAGES if other != package)
    assert violations(others, library) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_package_has_a_circular_import(package: str) -> None:
    """Imports under TYPE_CHECKING and inside functions count, too."""
    graphlib.TopologicalSorter(import_graph(ROOT, package)).prepare()  # CycleError names the cycle


def import_graph(root: Path, package: str) -> dict[str, set[str]]:
    """The modules of a package by dotted name, each with the modules of the package it imports."""
    paths = {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (root / package).rglob("*.py")
    }
    return {name: set(imports_of(path)) & paths.keys() - {name} for name, path in paths.items()}


def test_a_circular_import_would_be_found(tmp_path: Path) -> None:
    """Two modules that import each other, one of them for type annotations only."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package/__init__.py").write_text("")
    (tmp_path / "package/one.py").write_text("from package.two import f\n")
    (tmp_path / "package/two.py").write_text("if TYPE_CHECKING:\n    from package import one\n")
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(import_graph(tmp_path, "package")).prepare()


def test_services_import_no_development_libraries() -> None:
    """Images do not contain the libraries that only tests, scripts and benchmarks need."""
    assert violations(PACKAGES, *FORBIDDEN) == []


def test_generated_types_are_imported_only_at_the_edge() -> None:
    """Protobuf types are imported by servicers, clients and mesh/protocol only."""
    offenders = [
        name_of(path)
        for path in own_files(*PACKAGES)
        if not {name_of(path), name_of(path.parent)} & GENERATED_TYPES_IN
        and any((module + ".").startswith(GENERATED_PACKAGES) for module in imports_of(path))
    ]
    assert offenders == []


def test_shared_values_are_defined_once() -> None:
    """No service defines a class with the name of a value of mesh/protocol."""
    shared = set().union(*map(classes_of, own_files("mesh/protocol")))
    again = {name_of(path): classes_of(path) & shared for path in own_files(*SERVICES)}
    assert {name: classes for name, classes in again.items() if classes} == DEFINED_AGAIN


def classes_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(), str(path))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def test_the_environment_is_read_in_one_place() -> None:
    """os.environ and os.getenv occur in mesh.process.settings, telemetry and polling only."""
    offenders = [
        name_of(path)
        for path in own_files(*PACKAGES)
        if name_of(path) not in ENVIRONMENT_READERS and reads_environment(path)
    ]
    assert offenders == []


def reads_environment(path: Path) -> bool:
    names = {"environ", "getenv"}
    tree = ast.parse(path.read_text(), str(path))
    attributes = (node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    imported = {module.rpartition(".")[2] for module in imports_of(path) if module[:3] == "os."}
    return bool(names & imported or names & set(attributes))


def test_every_file_has_a_docstring_and_postponed_annotations() -> None:
    """Files with only a docstring need no `from __future__ import annotations`."""
    offenders = []
    for path in own_files(*PACKAGES):
        tree = ast.parse(path.read_text(), str(path))
        futures = {module for module in imports_of(path) if module.startswith("__future__.")}
        has_code = len(tree.body) > 1
        if not ast.get_docstring(tree) or (has_code and "__future__.annotations" not in futures):
            offenders.append(name_of(path))
    assert offenders == []


def test_no_exception_is_ignored_silently() -> None:
    """`except Exception: pass` and a bare `except` hide unexpected errors."""
    offenders = [
        f"{name_of(path)}:{handler.lineno}"
        for path in own_files(*PACKAGES)
        for handler in ast.walk(ast.parse(path.read_text(), str(path)))
        if isinstance(handler, ast.ExceptHandler) and swallows(handler)
    ]
    assert offenders == []


def swallows(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    broad = isinstance(handler.type, ast.Name) and handler.type.id in (
        "Exception",
        "BaseException",
    )
    return broad and all(isinstance(statement, ast.Pass) for statement in handler.body)


def test_the_rules_find_violations(tmp_path: Path) -> None:
    """Imports in functions, imported names, and each way to read the environment are found."""
    path = tmp_path / "module.py"
    path.write_text("def f():\n    import torch.nn as nn\n    from mesh.v1 import common_pb2\n")
    assert {"torch.nn", "mesh.v1", "mesh.v1.common_pb2"} <= set(imports_of(path))
    assert top_imports_of(path) == {"torch", "mesh"}
    assert not reads_environment(path)
    for source in ("import os\nos.getenv('A')", "from os import environ", "import os\nos.environ"):
        path.write_text(source)
        assert reads_environment(path)
    for source, expected in (("Exception", True), ("", True), ("OSError", False)):
        path.write_text(f"try:\n    f()\nexcept {source}:\n    pass\n")
        [handler] = [
            node
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ExceptHandler)
        ]
        assert swallows(handler) is expected
