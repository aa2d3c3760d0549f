"""Every kernel in Triton's interpreter; run by tests/inference/model/test_kernels.py."""

from __future__ import annotations

from tests.inference.model.kernel_checks import *  # noqa: F403  # collected here
