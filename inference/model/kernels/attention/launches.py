"""Chooses the attention kernel's launches for a step, so that they fill the GPU."""

from __future__ import annotations

from collections.abc import Sequence

from inference.model.kernels.attention.attention import Launch
from inference.model.kernels.attention.combine import MAX_SPLITS
from inference.runner.step_inputs import StepInputs

SMALLEST_TILE = 16
"""Fewest rows of a matrix product in Triton."""

LARGEST_TILE = 64
LARGEST_TILE_BYTES = 32_768
"""Most bytes of a tile's queries: keys and values also need shared memory."""

KEYS_PER_SPLIT = 64
"""Fewest keys that are worth a separate program."""

SMALLEST_PART = 256
"""Fewest keys of a part of fixed length."""


class Launches:
    """Chooses tiles and splits for a model's heads on a device."""

    def __init__(
        self, *, num_heads: int, num_kv_heads: int, num_programs: int, part: int = 0
    ) -> None:
        """`num_programs` is how many keep the GPU busy; `part` is each launch's `Launch.part`."""
        self._group = num_heads // num_kv_heads
        self._num_kv_heads = num_kv_heads
        self._num_programs = num_programs
        self._part = part

    def for_step(self, inputs: StepInputs, block_size: int, head_bytes: int) -> list[Launch]:
        """One launch for the sequences with one row each, and one for all others, if any.

        `head_bytes` is the size of one query head. The result is the same for all steps that one
        CUDA graph serves.
        """
        launches: list[Launch] = []
        if inputs.num_decodes:
            longest = inputs.num_blocks * block_size
            launches.append(self._launch(0, [1] * inputs.num_decodes, 0, longest, head_bytes))
        if inputs.row_ranges:
            first = inputs.row_ranges[0]
            num_rows = [rows.end - rows.begin for rows in inputs.row_ranges]
            longest = max(rows.context for rows in inputs.row_ranges)
            launches.append(
                self._launch(first.sequence, num_rows, first.begin, longest, head_bytes)
            )
        return launches

    def _launch(
        self,
        sequence: int,
        num_rows: Sequence[int],
        first_row: int,
        longest: int,
        head_bytes: int,
    ) -> Launch:
        most = max(num_rows)
        smallest = max(SMALLEST_TILE, _power_of_two(self._group))
        largest = min(LARGEST_TILE, LARGEST_TILE_BYTES // _power_of_two(head_bytes))
        # Batch invariance needs one tile size: tensor cores round differently with fewer rows.
        wanted = largest if self._part else min(_power_of_two(most * self._group), largest)
        tile_rows = max(wanted, smallest)
        num_tiles = -(-most // (tile_rows // self._group))
        # Programs that have queries: the grid has more if sequences differ in length.
        queries = tile_rows // self._group
        num_programs = sum(-(-each // queries) for each in num_rows) * self._num_kv_heads
        splits = min(self._num_programs // num_programs, -(-longest // KEYS_PER_SPLIT), MAX_SPLITS)
        if self._part:
            splits = -(-longest // self._part) if splits > 1 else 1
        return Launch(
            first_sequence=sequence,
            num_sequences=len(num_rows),
            first_row=first_row,
            num_rows=sum(num_rows),
            num_tiles=num_tiles,
            tile_rows=tile_rows,
            num_splits=max(splits, 1),
            part=self._part,
        )


def part_length(max_context: int) -> int:
    """The smallest part length with at most `MAX_SPLITS` parts in a context of this length."""
    return max(_power_of_two(-(-max_context // MAX_SPLITS)), SMALLEST_PART)


def _power_of_two(value: int) -> int:
    """The smallest power of two that is not below `value`."""
    return 1 << (value - 1).bit_length()
