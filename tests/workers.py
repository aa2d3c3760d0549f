"""Distributes tests to workers for `pytest --numprocesses` (pytest-xdist)."""

from __future__ import annotations

import pytest
from xdist.scheduler import LoadScopeScheduling

E2E_FOLDER = "tests/e2e"
"""Tests with the four processes; one worker runs them, so that they share the running ones."""

OWN_PROCESSES = (
    f"{E2E_FOLDER}/deployment/test_processes.py",
    f"{E2E_FOLDER}/deployment/test_run_local.py",
    f"{E2E_FOLDER}/observability/test_traces.py",
)
"""Those that start processes of their own, for which any worker will do."""


class FileScheduling(LoadScopeScheduling):
    """Assigns whole test files to workers, first the end-to-end tests, most of them to one."""

    def __init__(self, config: pytest.Config, log: object = None) -> None:
        super().__init__(config, log)  # type: ignore[arg-type]
        config.option.loadscopereorder = False

    def _split_scope(self, nodeid: str) -> str:
        """The unit that is assigned to one worker: a file, or most of `E2E_FOLDER`."""
        file = nodeid.partition("::")[0]
        return E2E_FOLDER if is_e2e(nodeid) and file not in OWN_PROCESSES else file


def is_e2e(nodeid: str) -> bool:
    """Whether this test is in `E2E_FOLDER`."""
    return nodeid.startswith(f"{E2E_FOLDER}/")
