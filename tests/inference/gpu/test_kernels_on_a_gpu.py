"""Compares every kernel with torch's operations on a GPU."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="NO KERNELS ARE TESTED: triton is not installed")

from tests.inference.model.kernel_checks import *  # noqa: F403  # collected here

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]
