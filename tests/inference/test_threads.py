"""How many threads the container's quota allows."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from inference.threads import available_cpus


@pytest.mark.parametrize(
    ("cpu_max", "expected"),
    [
        ("max 100000", 8),
        ("400000 100000", 4),
        ("250000 100000", 2),
        ("50000 100000", 1),
        ("9900000 100000", 8),
        (None, 8),
    ],
)
def test_the_quota_cuts_the_affinity(
    cpu_max: str | None, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounded down, at least one, and never more than the process may run on."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    path = tmp_path / "cpu.max"
    if cpu_max is not None:
        path.write_text(cpu_max)
    assert available_cpus(path) == expected
