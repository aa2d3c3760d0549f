"""The list of all images of a chart."""

from __future__ import annotations

from scripts.chart.values import Entry

SERVICES = ("gateway", "orchestrator", "tokenizer", "inference")


def list_images(root: Entry, app_version: str) -> list[str]:
    """Image references of the default values, without a registry; both variants of inference."""
    images = []
    for service in SERVICES:
        repository = root.children[service].children["image"].children["repository"].value
        images.append(f"{repository}:{app_version}")
    suffix = root.children["inference"].children["gpu"].children["tagSuffix"].value
    return [*images, f"{images[-1]}{suffix}"]
