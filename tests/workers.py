"""How `pytest --numprocesses` shares the tests out."""

from __future__ import annotations

import pytest
from xdist.scheduler import LoadScopeScheduling

STACKS = "tests/e2e"
"""Tests of real processes: a machine that starts one stack starts no other beside it."""


class WholeFiles(LoadScopeScheduling):
    """A worker takes a file of tests at a time; one takes all that start stacks, and first."""

    def __init__(self, config: pytest.Config, log: object = None) -> None:
        super().__init__(config, log)  # type: ignore[arg-type]
        config.option.loadscopereorder = False

    def _split_scope(self, nodeid: str) -> str:
        """What is not divided among workers: a file, or all of `STACKS`."""
        return STACKS if is_of_stack(nodeid) else nodeid.partition("::")[0]


def is_of_stack(nodeid: str) -> bool:
    """Whether this test starts the real processes."""
    return nodeid.startswith(f"{STACKS}/")
