"""Conversion of steps into tensors."""

from __future__ import annotations

import pytest
import torch

from inference.runner.profile_run import full_step, short_steps
from inference.runner.step import Step
from inference.runner.step_inputs import RowRange, make_inputs
from tests.inference.steps import make_step

CPU = torch.device("cpu")


def test_the_tensors_have_the_values_of_the_step() -> None:
    """A step with decodes, a prompt, a chunk and drafts."""
    step = make_step([(4, 1), (33, 1), (0, 20), (40, 9), (8, 1)], 16, num_blocks=20)
    inputs = make_inputs(step, 16, CPU)
    assert inputs.token_ids.tolist() == step.token_ids
    assert inputs.positions.tolist() == step.positions
    assert inputs.begins.tolist() == step.begins == [0, 1, 2, 22, 31, 32]
    assert inputs.contexts.tolist() == [5, 34, 20, 49, 9]
    assert inputs.outputs.tolist() == step.outputs
    assert (inputs.num_decodes, inputs.num_blocks) == (2, 3)
    assert inputs.row_ranges == (
        RowRange(2, 2, 22, 20),
        RowRange(3, 22, 31, 49),
        RowRange(4, 31, 32, 9),
    )
    assert inputs.tables.shape == (5, 4)
    for sequence, table in enumerate(step.block_tables):
        assert inputs.tables[sequence].tolist() == [*table, *[0] * (4 - len(table))]
        for row in range(step.begins[sequence], step.begins[sequence + 1]):
            block, offset = divmod(step.positions[row], 16)
            assert inputs.slots[row] == table[block] * 16 + offset


def test_all_tensors_are_one_copy() -> None:
    """They are views of one buffer."""
    inputs = make_inputs(make_step([(4, 1), (0, 20)], 16, num_blocks=20), 16, CPU)
    tensors = (
        inputs.token_ids,
        inputs.positions,
        inputs.slots,
        inputs.begins,
        inputs.contexts,
        inputs.outputs,
        inputs.tables,
    )
    assert {each.dtype for each in tensors} == {torch.int32}
    assert len({each.untyped_storage().data_ptr() for each in tensors}) == 1


def test_blocks_that_a_step_does_not_need_are_left_out() -> None:
    """A sequence may have blocks for later tokens."""
    step = Step(token_ids=[7], positions=[3], begins=[0, 1], block_tables=[[5, 6, 7]], outputs=[0])
    assert make_inputs(step, 16, CPU).tables.tolist() == [[5]]


@pytest.mark.parametrize(("num_tokens", "max_context"), [(2048, 512), (100, 64), (30, 8192)])
def test_the_full_step_has_all_tokens_and_all_logits(num_tokens: int, max_context: int) -> None:
    """Its sequences are as long as possible, in separate blocks."""
    step = full_step(num_tokens, max_context, 16)
    assert len(step.token_ids) == len(step.outputs) == num_tokens
    assert max(step.positions) < max_context
    inputs = make_inputs(step, 16, CPU)
    assert len(set(inputs.slots.tolist())) == num_tokens


def test_short_steps_have_each_number_of_rows_without_and_with_context() -> None:
    """As far as the maximum context allows."""
    spans = [(step.positions[0], len(step.positions)) for step in short_steps(140, 16)]
    assert spans == [
        (0, 1), (128, 1), (0, 2), (128, 2), (0, 4), (128, 4), (0, 8), (128, 8), (0, 16), (0, 32),
        (0, 64), (0, 128),
    ]  # fmt: skip
