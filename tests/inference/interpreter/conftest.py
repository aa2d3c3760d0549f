"""Fixtures of the checks in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from inference.model import loading


@pytest.fixture(autouse=True, scope="session")
def corrected() -> None:
    """Makes the interpreter compute as a GPU does."""
    # Imported here: pytest reads this file on machines without Triton, too.
    from tests.inference.interpreter import corrections

    corrections.apply()


@pytest.fixture(autouse=True)
def cold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes engines without their warm-up: the interpreter compiles nothing, and is slow."""
    monkeypatch.setattr(loading, "_warm_up", lambda engine: None)


@pytest.fixture
def device() -> torch.device:
    """The CPU as a torch device."""
    torch.manual_seed(0)
    return torch.device("cpu")
