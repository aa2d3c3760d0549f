"""Every kernel in Triton's interpreter; run by tests/inference/test_kernels.py."""

from __future__ import annotations

from tests.inference.kernel_checks import *  # noqa: F403  # collected here
