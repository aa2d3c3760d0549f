"""The list of all images of a chart."""

from __future__ import annotations

from scripts.chart.values import Entry

SERVICES = ("gateway", "orchestrator", "tokenizer", "inference")


def list_images(root: Entry, app_version: str) -> list[str]:
    """Image references of the default values; both variants of inference, and vLLM."""
    images = []
    for service in SERVICES:
        repository = root.children[service].children["image"].children["repository"].value
        images.append(f"{repository}:{app_version}")
    suffix = root.children["inference"].children["gpu"].children["tagSuffix"].value
    vllm = root.children["vllm"].children["image"].children
    return [
        *images,
        f"{images[-1]}{suffix}",
        f"{vllm['repository'].value}:{vllm['tag'].value}",
    ]
