"""`python -m inference`: the inference service."""

from __future__ import annotations

from inference.application import application
from inference.settings import InferenceSettings
from mesh.process.lifecycle import run
from mesh.process.settings import load


def main() -> None:
    """Reads the settings and serves until a signal."""
    settings = load(InferenceSettings, "inference")
    run("inference", settings, lambda: application(settings))


if __name__ == "__main__":
    main()
