"""`python -m orchestrator`: the LLM service."""

from __future__ import annotations

from mesh.process.lifecycle import run
from mesh.process.settings import load
from orchestrator.application import application
from orchestrator.settings import OrchestratorSettings


def main() -> None:
    """Reads the settings and serves until a signal."""
    settings = load(OrchestratorSettings, "orchestrator")
    run("orchestrator", settings, lambda: application(settings))


if __name__ == "__main__":
    main()
