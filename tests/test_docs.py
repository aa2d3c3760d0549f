"""The documentation names modules, files and pages that exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("mesh", "gateway", "orchestrator", "tokenizer", "inference")
PAGES = sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").rglob("*.md"))
DOTTED = re.compile(rf"`((?:{'|'.join(PACKAGES)})(?:\.\w+)+)(?<!\.json)(?:\(\))?`")
FILE = re.compile(r"`([\w./-]+/[\w.-]+\.(?:py|c|h|sh|yaml|proto|md|txt|toml))`")
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
METHOD = re.compile(r"`([A-Z]\w+)\.(\w+)`")
DELETED = {"CHANGELOG.md"}
"""Pages about the past, which may name what no longer exists."""


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def module_file(parts: list[str]) -> Path | None:
    folder = ROOT.joinpath(*parts)
    if folder.is_dir() and any(folder.glob("*.py")):
        return folder / "__init__.py"
    return folder.with_suffix(".py") if folder.with_suffix(".py").exists() else None


def members(tree: ast.AST) -> dict[str, ast.AST]:
    """Classes, functions and assigned names directly in a module or class."""
    found: dict[str, ast.AST] = {}
    for node in getattr(tree, "body", []):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign):
            found.update({each.id: node for each in node.targets if isinstance(each, ast.Name)})
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = node
    return found


def exists(dotted: str) -> bool:
    """Whether a module, or a member of one, has this dotted name."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        file = module_file(parts[:length])
        if file is None:
            continue
        tree: ast.AST = ast.parse(file.read_text())
        for member in parts[length:]:
            known = members(tree)
            if member not in known:
                return False
            tree = known[member]
        return True
    return False


def is_chart_value(dotted: str) -> bool:
    """Whether the chart has a value of this name, such as `inference.resources.limits`."""
    section, key, *_ = dotted.split(".")
    values = yaml.safe_load((ROOT / "charts/weir/values.yaml").read_text())
    return key in values.get(section, {})


def packages() -> Iterator[str]:
    for package in PACKAGES:
        for folder in [ROOT / package, *(ROOT / package).rglob("*/")]:
            if any(folder.glob("*.py")):
                yield folder.relative_to(ROOT).as_posix().replace("/", ".")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_module_named_in_a_page_exists(page: Path) -> None:
    """Dotted names in backticks are modules or their members; chart values are not checked."""
    if name_of(page) in DELETED:
        return
    named = set(DOTTED.findall(page.read_text()))
    assert sorted(name for name in named if not exists(name) and not is_chart_value(name)) == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_file_and_link_of_a_page_exists(page: Path) -> None:
    """Paths in backticks are relative to the repository, links to the page."""
    if name_of(page) in DELETED:
        return
    text = page.read_text()
    missing = [path for path in FILE.findall(text) if not (ROOT / path).exists()]
    missing += [link for link in LINK.findall(text) if not (page.parent / link).exists()]
    assert missing == []


def test_the_architecture_page_names_every_package() -> None:
    """A new package needs a line there."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    assert [name for name in packages() if f"`{name}`" not in text] == []


def test_the_architecture_page_names_existing_methods() -> None:
    """`Class.method` is a method of a class in one of the packages."""
    methods: set[tuple[str, str]] = set()
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.ClassDef):
                    methods |= {(node.name, member) for member in members(node)}
    text = (ROOT / "docs" / "architecture.md").read_text()
    assert [pair for pair in METHOD.findall(text) if pair not in methods] == []


def test_a_wrong_name_would_be_noticed() -> None:
    """The check resolves modules, classes and methods, and rejects unknown ones."""
    assert exists("mesh.rpc.channel")
    assert exists("mesh.rpc.channel.open_stream")
    assert exists("gateway.upstream.client.Orchestrator.search")
    assert not exists("mesh.rpc.no_such_module")
    assert not exists("mesh.rpc.channel.no_such_name")
    assert not exists("gateway.upstream.client.Orchestrator.no_such_method")


def test_the_table_of_decisions_lists_every_record_once_and_in_order() -> None:
    records = sorted((ROOT / "docs/decisions").glob("0*.md"))
    titles = [record.read_text().splitlines()[0].split(": ", 1)[1] for record in records]
    page = (ROOT / "docs/decisions/README.md").read_text()
    rows = re.findall(r"^\| \[\d{4}\]\((0[\w-]+\.md)\) \| (.*?) \| ", page, re.MULTILINE)
    assert rows == list(zip([record.name for record in records], titles, strict=True))
    merged = page[page.index("| Merged | Into |") :]
    assert not re.search(r"^\| \[\d{4}\]", merged, re.MULTILINE), "a record is in the last table"


def test_no_threat_is_listed_twice() -> None:
    page = (ROOT / "docs/threat-model.md").read_text()
    threats = re.findall(r"^\| ([^|]+) \|", page, re.MULTILINE)
    assert len(threats) == len(set(threats))
