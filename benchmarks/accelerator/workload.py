"""The workload of every contender, and the definition of its speed."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

from benchmarks.contenders.measure import FIRST_ID

NUM_PREFILLS = 5
"""Sequential prompts of a prefill measurement, which is their median."""

WARM_UP_TOKENS = 4


class Row(NamedTuple):
    """One figure: decode of `size` streams, or prefill of a prompt of `size` tokens."""

    kind: str
    """`decode` or `prefill`."""
    size: int
    sampled: bool = False
    """At temperature 1 instead of greedy."""

    @property
    def name(self) -> str:
        """The row's name in tables and files."""
        if self.kind == "prefill":
            return f"prefill, {self.size:,} tokens"
        streams = "1 stream" if self.size == 1 else f"{self.size} streams"
        return f"decode, {streams}{', temperature 1' if self.sampled else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The workload of one round of a contender."""

    folder: str
    device: str
    """`cuda` or `cpu`."""
    streams: tuple[int, ...]
    prompt_length: int
    output_length: int
    prefill_length: int
    seed: int
    """Seed of the round. All contenders of a round have the same prompts; rounds differ."""

    @property
    def rows(self) -> list[Row]:
        """Decode for each number of streams (the largest also sampled), and prefill."""
        greedy = [Row("decode", streams) for streams in self.streams]
        most = Row("decode", max(self.streams), sampled=True)
        return [*greedy, most, Row("prefill", self.prefill_length)]

    @property
    def max_context(self) -> int:
        """Maximum tokens of prompt and output."""
        return max(self.prompt_length + self.output_length, self.prefill_length + 1)

    def prompts(self, row: Row, vocab_size: int, *, warm_up: bool = False) -> list[list[int]]:
        """Random ids, without common prefixes within and between rows."""
        length, count = self.prompt_length, row.size
        if row.kind == "prefill":
            length, count = self.prefill_length, NUM_PREFILLS
        rng = random.Random(f"{self.seed} {row.name} {warm_up}")
        return [[rng.randrange(FIRST_ID, vocab_size) for _ in range(length)] for _ in range(count)]

    def to_json(self) -> str:
        """Serializes the workload for the command line."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Workload:
        """Parses the output of `to_json`."""
        values = json.loads(text)
        return Workload(**{**values, "streams": tuple(values["streams"])})


def decode_rate(times: Sequence[Sequence[float]]) -> float:
    """Tokens per second of all streams, while all of them decode.

    `times` are the arrival times of each stream's tokens, in seconds. The window starts when the
    last stream has its first token and ends when the first stream has its last token; outside of it
    some streams prefill or have ended. The result is the sum of the streams' rates, which does not
    depend on where the window cuts a step.

    Raises ValueError if a stream has fewer than two tokens in the window.
    """
    begin = max(stream[0] for stream in times)
    end = min(stream[-1] for stream in times)
    inside = [[at for at in stream if begin <= at <= end] for stream in times]
    if min(map(len, inside)) < 2 or end <= begin:
        raise ValueError("the first stream ended before all were decoding: choose a longer output")
    return sum((len(stream) - 1) / (stream[-1] - stream[0]) for stream in inside)
