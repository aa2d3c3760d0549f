"""Provenance of an image: how, and from what, it was built.

The format is an in-toto statement with a SLSA provenance predicate (slsa.dev/provenance/v1).
"""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SOURCE = "https://github.com/weir-llm/weir"
TYPE = "application/vnd.in-toto+json"


def statement(name: str, digest: str, parameters: dict[str, str]) -> dict[str, Any]:
    """The statement about an image with this digest, built by `make build` with `parameters`."""
    base, _, base_digest = parameters.get("BASE_IMAGE", "").partition("@sha256:")
    materials = [{"uri": f"git+{SOURCE}", "digest": {"gitCommit": _revision()}}]
    if base_digest:
        materials.append({"uri": f"docker://{base}", "digest": {"sha256": base_digest}})
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {"sha256": digest.removeprefix("sha256:")}}],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": f"{SOURCE}/blob/main/docs/images.md",
                "externalParameters": parameters,
                "internalParameters": {"platform": platform.platform()},
                "resolvedDependencies": materials,
            },
            "runDetails": {
                "builder": {"id": _builder()},
                "metadata": {"invocationId": _invocation()},
            },
        },
    }


def _revision() -> str:
    command = ["git", "rev-parse", "HEAD"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _builder() -> str:
    """The workflow on GitHub, or the machine."""
    workflow = os.environ.get("GITHUB_WORKFLOW_REF")
    return f"https://github.com/{workflow}" if workflow else f"https://{platform.node()}"


def _invocation() -> str:
    run = os.environ.get("GITHUB_RUN_ID")
    return f"{SOURCE}/actions/runs/{run}" if run else f"{SOURCE}/commit/{_revision()}"
