"""Every kernel in Triton's interpreter; run by tests/inference/test_kernels.py."""

from __future__ import annotations

from tests.inference.kernel_checks import (  # noqa: F401  # collected here
    test_attention,
    test_norms_gate_and_sum,
    test_parts_without_keys_are_left_out,
    test_rows_are_rounded_to_eight_bits,
    test_tokens_are_drawn_as_torch_draws_them,
    test_what_lies_behind_a_context_is_never_read,
)
