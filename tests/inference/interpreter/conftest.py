"""Where the kernels compute, and the interpreter they compute in."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def corrected() -> None:
    """The interpreter does what a GPU does."""
    # Imported here: this file is read wherever tests are collected, and Triton may be missing.
    from tests.inference.interpreter import corrections

    corrections.apply()


@pytest.fixture
def device() -> torch.device:
    """The CPU."""
    torch.manual_seed(0)
    return torch.device("cpu")
