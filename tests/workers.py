"""Distributes tests to workers for `pytest --numprocesses` (pytest-xdist)."""

from __future__ import annotations

import pytest
from xdist.scheduler import LoadScopeScheduling

E2E_FOLDER = "tests/e2e"
"""Tests that start the four processes; only one worker runs them, to limit the load."""


class FileScheduling(LoadScopeScheduling):
    """Assigns whole test files to workers, and all end-to-end tests to one worker, first."""

    def __init__(self, config: pytest.Config, log: object = None) -> None:
        super().__init__(config, log)  # type: ignore[arg-type]
        config.option.loadscopereorder = False

    def _split_scope(self, nodeid: str) -> str:
        """The unit that is assigned to one worker: a file, or all of `E2E_FOLDER`."""
        return E2E_FOLDER if is_e2e(nodeid) else nodeid.partition("::")[0]


def is_e2e(nodeid: str) -> bool:
    """Whether this test is in `E2E_FOLDER`."""
    return nodeid.startswith(f"{E2E_FOLDER}/")
