"""Reads the Prometheus metrics of this process, and their changes."""

from __future__ import annotations

from prometheus_client import REGISTRY

Key = tuple[str, frozenset[tuple[str, str]]]


class Change:
    """The increase of samples since this object was created."""

    def __init__(self) -> None:
        self._before = _samples()

    def of(self, name: str, **labels: str) -> float:
        """The increase of the sum of all samples with this name and at least these labels."""
        return _sum(_samples(), name, labels) - _sum(self._before, name, labels)


def value(name: str, **labels: str) -> float:
    """The sum of all samples with this name and at least these labels."""
    return _sum(_samples(), name, labels)


def _samples() -> dict[Key, float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in REGISTRY.collect()
        for sample in family.samples
    }


def _sum(samples: dict[Key, float], name: str, labels: dict[str, str]) -> float:
    return sum(
        number
        for (each, has), number in samples.items()
        if each == name and labels.items() <= dict(has).items()
    )
