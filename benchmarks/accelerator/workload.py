"""What every contender is asked to do, and how its speed is counted."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

from benchmarks.contenders.measure import FIRST_ID

NUM_PREFILLS = 5
"""Prompts of a round, one after another, for the figure of prefill; the median counts."""

WARM_UP_TOKENS = 4


class Row(NamedTuple):
    """One figure: so many streams that decode, or one prompt of so many tokens."""

    kind: str
    """`decode` or `prefill`."""
    size: int
    sampled: bool = False
    """At temperature 1 instead of greedily."""

    @property
    def name(self) -> str:
        """As it is printed and written."""
        if self.kind == "prefill":
            return f"prefill, {self.size:,} tokens"
        streams = "1 stream" if self.size == 1 else f"{self.size} streams"
        return f"decode, {streams}{', temperature 1' if self.sampled else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A round of one contender."""

    folder: str
    device: str
    """`cuda` or `cpu`."""
    streams: tuple[int, ...]
    prompt_length: int
    output_length: int
    prefill_length: int
    seed: int
    """The round's: no prompt occurs in two rounds, all contenders of a round have the same."""

    @property
    def rows(self) -> list[Row]:
        """Decode by streams, the most of them sampled as well, and prefill."""
        greedy = [Row("decode", streams) for streams in self.streams]
        most = Row("decode", max(self.streams), sampled=True)
        return [*greedy, most, Row("prefill", self.prefill_length)]

    @property
    def max_context(self) -> int:
        """Most tokens of prompt and output together."""
        return max(self.prompt_length + self.output_length, self.prefill_length + 1)

    def prompts(self, row: Row, vocab_size: int, *, warm_up: bool = False) -> list[list[int]]:
        """Random ids: none shares a prefix with another, here or in another row."""
        length, count = self.prompt_length, row.size
        if row.kind == "prefill":
            length, count = self.prefill_length, NUM_PREFILLS
        draw = random.Random(f"{self.seed} {row.name} {warm_up}")
        return [[draw.randrange(FIRST_ID, vocab_size) for _ in range(length)] for _ in range(count)]

    def to_json(self) -> str:
        """For the command line of a contender."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Workload:
        """The reverse of `to_json`."""
        values = json.loads(text)
        return Workload(**{**values, "streams": tuple(values["streams"])})


def decode_rate(times: Sequence[Sequence[float]]) -> float:
    """Tokens a second of all streams together, while all of them decode.

    `times` are, for each stream, the seconds at which its tokens came. From the moment at which
    the last of the streams has its first token until the first of them has its last one, each
    stream's intervals are counted; outside of it some still prefill or have ended. The sum of the
    streams' own rates does not depend on where the window cuts a step.

    Raises ValueError where that leaves a stream less than two tokens.
    """
    begin = max(stream[0] for stream in times)
    end = min(stream[-1] for stream in times)
    inside = [[at for at in stream if begin <= at <= end] for stream in times]
    if min(map(len, inside)) < 2 or end <= begin:
        raise ValueError("the first stream ended before all were decoding: choose a longer output")
    return sum((len(stream) - 1) / (stream[-1] - stream[0]) for stream in inside)
