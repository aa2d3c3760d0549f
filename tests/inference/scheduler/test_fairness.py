"""Long prompts beside other work: short steps, a share for short prompts, and no starvation."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from inference.engine.engine import Engine
from inference.sampling.sampling_params import SamplingParams
from inference.scheduler.block_manager import BlockManager
from inference.scheduler.prefill_budget import (
    ALONE_FACTOR,
    MIN_ALONE_TOKENS,
    MIN_PROMPT_TOKENS,
    TARGET_STEP_SECONDS,
)
from inference.scheduler.scheduler import Scheduler
from inference.scheduler.scheduler_output import SchedulerOutput
from inference.scheduler.sequence import Sequence, SequenceStatus
from inference.scheduler.step_result import SampledToken
from tests.inference.stub_runner import make_sequence

LONG = 7_900
BUDGET = 2_048
SLOW, FAST = 1e-3, 1e-5
"""Seconds per token of a CPU and of a GPU."""


class Device:
    """A scheduler whose steps take a simulated time."""

    def __init__(
        self, seconds_per_token: float, *, num_tokens: int = 65_536, overhead: float = 0.005
    ) -> None:
        """`num_tokens` fit the KV cache; each step takes `overhead` seconds more."""
        self.now = 0.0
        self.seconds_per_token = seconds_per_token
        self.overhead = overhead
        self.durations: list[float] = []
        self.scheduler = Scheduler(
            BlockManager(num_tokens // 16, 16), max_num_seqs=64, max_num_batched_tokens=BUDGET
        )

    def add(self, name: str, length: int, max_tokens: int = 1, first: int = 0) -> Sequence:
        """Add a sequence whose prompt shares no block with one of another `first` id or name."""
        marker = first or sum(map(ord, name)) + len(name) * 1_000
        sequence = make_sequence(name, [marker, *range(length - 1)], max_tokens)
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> SchedulerOutput:
        """Run a step of all sequences."""
        plan = self.scheduler.schedule(self.now)
        assert plan.scheduled, "there are sequences, and none was scheduled"
        self.durations.append(self.overhead + plan.num_tokens * self.seconds_per_token)
        self.now += self.durations[-1]
        tokens = [[SampledToken(1)] for _ in plan.sampling]
        self.scheduler.finish(plan, tokens, self.now)
        self.scheduler.check_integrity()
        return plan

    def run(self, until: Callable[[], bool]) -> None:
        """Run steps until a condition holds."""
        for _ in range(5_000):
            if until():
                return
            self.step()
        raise AssertionError("it never holds")


def chunk_of(plan: SchedulerOutput, sequence: Sequence) -> int:
    """Tokens of a sequence in a step."""
    return sum(s.num_tokens for s in plan.scheduled if s.sequence is sequence)


def first_token(device: Device, sequence: Sequence) -> float:
    """Run until a sequence has its first token; returns when it had."""
    device.run(lambda: sequence.first_token_time is not None)
    assert sequence.first_token_time is not None
    return sequence.first_token_time


def test_a_long_prompt_delays_neither_streams_nor_short_prompts() -> None:
    """Steps keep to their duration, and the short prompt runs in the first one after it arrives."""
    device = Device(SLOW)
    stream = device.add("stream", 20, max_tokens=10_000)
    first_token(device, stream)
    long = device.add("long", LONG)
    for _ in range(3):
        device.step()
    before = device.now
    short = device.add("short", 60)
    assert first_token(device, short) - before <= 2 * TARGET_STEP_SECONDS
    assert long.first_token_time is None
    began = long.scheduled_time
    assert began is not None
    assert first_token(device, long) - began <= 1.5 * LONG * SLOW
    assert max(device.durations) <= 1.2 * TARGET_STEP_SECONDS


def test_a_fast_device_computes_whole_steps() -> None:
    """Beside a stream and other prompts, once its speed is measured."""
    device = Device(FAST)
    device.add("stream", 20, max_tokens=10_000)
    device.add("warm-up", 300)
    for _ in range(4):
        device.step()
    device.add("long", LONG)
    device.add("another", LONG)
    sizes = [device.step().num_tokens for _ in range(6)]
    assert sizes == [BUDGET] * 6


@pytest.mark.parametrize("beside", ["nothing", "a stream", "inputs to embed"])
def test_only_a_sequence_with_other_work_beside_it_has_short_steps(beside: str) -> None:
    """Alone it has longer ones, and on a slow device never less than the least number of tokens."""
    device = Device(10 * SLOW)
    if beside == "a stream":
        device.add("stream", 20, max_tokens=10_000)
    device.scheduler.embeds = lambda: beside == "inputs to embed"
    long = device.add("long", LONG)
    sizes = [chunk_of(device.step(), long) for _ in range(5)]
    least = MIN_ALONE_TOKENS if beside == "nothing" else MIN_PROMPT_TOKENS
    assert sizes[-3:] == [least] * 3
    device.seconds_per_token = SLOW
    for _ in range(8):
        size = chunk_of(device.step(), long)
    seconds = TARGET_STEP_SECONDS * (ALONE_FACTOR if beside == "nothing" else 1)
    assert size == pytest.approx(seconds / SLOW, rel=0.1)


def test_short_prompts_without_end_do_not_starve_a_long_one() -> None:
    """It has at least half of each step, and takes at most about twice its time alone."""
    device = Device(SLOW)
    device.add("stream", 20, max_tokens=10_000)
    long = device.add("long", LONG)
    for _ in range(3):
        device.step()
    number = 0
    while long.first_token_time is None:
        while device.scheduler.num_waiting < 10:
            device.add(f"short {number}", 150, first=1_000_000 + number)
            number += 1
        plan = device.step()
        assert chunk_of(plan, long) >= (plan.num_tokens - 1) // 2 or long.first_token_time
    assert long.first_token_time <= 2.5 * LONG * SLOW
    assert number > 20, "short prompts were served meanwhile"


def test_prompts_of_one_length_are_served_in_order() -> None:
    """Halving the speed of the first would delay it and speed up none."""
    device = Device(SLOW)
    sequences = [device.add(f"{n}", 1_000, first=100_000 + n) for n in range(4)]
    times = [first_token(device, sequence) for sequence in sequences]
    assert times == sorted(times)
    assert len(set(times)) == 4


def test_a_short_prompt_passes_long_ones_that_wait_for_blocks() -> None:
    """Of three long prompts the cache holds one; short ones start, up to the waiting one's size."""
    device = Device(SLOW, num_tokens=9_000)
    running, waiting, _ = (device.add(f"long {n}", LONG, first=10_000 + n) for n in range(3))
    device.step()
    assert waiting.status is SequenceStatus.WAITING
    shorts = [device.add(f"short {n}", 400, first=20_000 + n) for n in range(40)]
    first_token(device, shorts[0])
    assert running.first_token_time is None
    device.run(lambda: waiting.status is SequenceStatus.RUNNING)
    assert 0 < waiting.num_overtaken_tokens <= LONG
    device.run(lambda: not device.scheduler.has_work)


def test_a_preempted_sequence_is_not_overtaken() -> None:
    """Its client is reading its stream: it gets the next free blocks."""
    device = Device(FAST, num_tokens=512)
    old, young = (device.add(name, 200, max_tokens=120) for name in ("old", "young"))
    device.run(lambda: young.num_preemptions > 0)
    short = device.add("short", 20)
    device.run(lambda: short.first_token_time is not None)
    assert old.finish is not None
    assert young.num_overtaken_tokens == 0
    device.run(lambda: not device.scheduler.has_work)


def test_a_prompt_that_waits_for_its_prefix_delays_no_other() -> None:
    """The copy of a long prompt waits until the first is computed; a short prompt does not."""
    device = Device(SLOW)
    first = device.add("first", LONG, first=7)
    copy = device.add("copy", LONG, first=7)
    device.step()
    short = device.add("short", 60)
    assert first_token(device, short) <= 3.0
    assert copy.status is SequenceStatus.WAITING
    assert first.first_token_time is None
    device.run(lambda: not device.scheduler.has_work)
    assert copy.num_cached_tokens > LONG - 32


def test_a_short_prompt_beside_a_long_one_in_a_real_engine(
    make_slow_engine: Callable[..., Engine],
) -> None:
    """It has its first token after a small part of the long prompt; no token differs."""
    prompts = {
        "stream": ([1, 2, 3], 100),
        "long": ([number % 150 for number in range(LONG // 2)], 4),
        "short": ([7, 8, 9] * 10, 4),
    }
    tokens: list[list[list[int]]] = []
    for target in (0.0, 0.002):
        engine = make_slow_engine(target_step_seconds=target)
        stream, long, short = (
            Sequence(name, ids, SamplingParams(max_tokens=number, temperature=0.0, ignore_eos=True))
            for name, (ids, number) in prompts.items()
        )
        for sequence in (stream, long, short):
            engine.add(sequence)
            engine.step()
        while short.first_token_time is None:
            engine.step()
        if target:
            assert long.num_computed_tokens < LONG // 8
        while engine.has_work:
            engine.step()
        engine.check_when_idle()
        tokens.append([s.token_ids.tolist() for s in (stream, long, short)])
    assert tokens[0] == tokens[1]
