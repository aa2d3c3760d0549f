"""Every kernel against torch's operations, compiled and started."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="NO KERNELS ARE TESTED: triton is not installed")

from tests.inference.kernel_checks import (  # noqa: F401  # collected here
    test_attention,
    test_norms_gate_and_sum,
    test_parts_without_keys_are_left_out,
    test_rows_are_rounded_to_eight_bits,
    test_tokens_are_drawn_as_torch_draws_them,
    test_what_lies_behind_a_context_is_never_read,
)

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]
