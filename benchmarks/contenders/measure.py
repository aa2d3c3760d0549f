"""The load of a contender, and the report of its measurements."""

from __future__ import annotations

import json
import random
import resource
import sys
from pathlib import Path
from typing import NamedTuple

FIRST_ID = 3
"""Lower ids are special tokens."""


class Load(NamedTuple):
    """The load of a contender."""

    folder: Path
    num_streams: int
    prompt_length: int
    output_length: int
    num_threads: int

    def prompts(self, vocab_size: int = 49_152) -> list[list[int]]:
        """A random prompt for each stream, without common prefixes."""
        rng = random.Random(0)
        return [
            [rng.randrange(FIRST_ID, vocab_size) for _ in range(self.prompt_length)]
            for _ in range(self.num_streams)
        ]


def load_from_arguments() -> Load:
    """Reads the command line of a contender."""
    folder, *numbers = sys.argv[1:]
    return Load(Path(folder), *map(int, numbers))


def report(
    load: Load, prefill_seconds: float, decode_seconds: float, num_decoded: int | None = None
) -> None:
    """Prints the speeds as JSON.

    `decode_seconds` starts when every stream has its first token; `num_decoded` tokens follow from
    then on. None: all tokens but the first of each stream.
    """
    decoded = load.num_streams * (load.output_length - 1) if num_decoded is None else num_decoded
    print(
        json.dumps(
            {
                "prefill_tokens_per_second": load.num_streams
                * load.prompt_length
                / prefill_seconds,
                "decode_tokens_per_second": decoded / decode_seconds,
                "resident_mib": _resident_mib(),
            }
        )
    )


def _resident_mib() -> float:
    """Resident memory of this process, with the pages of mapped files."""
    num_pages = int(Path("/proc/self/statm").read_text().split()[1])
    return num_pages * resource.getpagesize() / 2**20
