"""CI, .ci/run and pre-commit run the same checks."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import yaml

from scripts.pinned_requirements import read_pins

ROOT = Path(__file__).resolve().parents[1]
MAX_BYTES = 1_000_000
MAKE = re.compile(r"\bmake (?:--keep-going )?([a-z-]+)")


def hooks() -> dict[str, dict[str, Any]]:
    """The pre-commit hooks by id, each with its repository and revision."""
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    return {
        hook["id"]: {"repo": repo["repo"], "rev": repo["rev"], **hook}
        for repo in config["repos"]
        for hook in repo["hooks"]
    }


def test_the_workflow_runs_the_make_targets_of_the_script() -> None:
    """A green workflow means that `.ci/run` passes too."""
    script = re.sub(r"^\s*#.*", "", (ROOT / ".ci/run").read_text(), flags=re.MULTILINE)
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    steps = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
    targets = MAKE.findall("\n".join(steps))
    assert targets == MAKE.findall(script) == ["ci", "test-images"]


def test_pre_commit_uses_the_pinned_tools() -> None:
    """A hook of another version would format what `make lint` then refuses."""
    pins = {pin.name: pin.version for pin in read_pins((ROOT / "constraints.txt").read_text())}
    found = hooks()
    for tool, hook in (("ruff", "ruff-check"), ("ruff", "ruff-format"), ("codespell", "codespell")):
        assert found[hook]["rev"] == f"v{pins[tool]}"


def test_pre_commit_parses_every_yaml_file_but_templates() -> None:
    """What check-yaml excludes are Helm's templates; all other YAML files parse."""
    excluded = re.compile(hooks()["check-yaml"]["exclude"])
    names = [name for name in tracked() if name.endswith((".yaml", ".yml"))]
    templates = {name for name in names if excluded.search(name)}
    assert templates == {name for name in names if "/templates/" in name}
    for name in set(names) - templates:
        list(yaml.safe_load_all((ROOT / name).read_text()))


def test_no_large_file_is_tracked_but_the_demo_model() -> None:
    """Raw results stay out of the repository: docs/benchmarks has summaries."""
    hook = hooks()["check-added-large-files"]
    assert hook["args"] == [f"--maxkb={MAX_BYTES // 1000}"]
    allowed = re.compile(hook["exclude"])
    large = [n for n in tracked() if (ROOT / n).is_file() and size(n) >= MAX_BYTES]
    assert [name for name in large if not allowed.search(name)] == []


def size(name: str) -> int:
    """Bytes of a tracked file."""
    return (ROOT / name).stat().st_size


def tracked() -> list[str]:
    """Files that git tracks or would add."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.splitlines()
