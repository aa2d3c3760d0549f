"""Scheduler and block manager: random traffic, then single rules."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from inference.engine.errors import StepFailed
from inference.sampling.sampling_params import SamplingParams
from inference.scheduler.block_manager import BlockManager
from inference.scheduler.scheduler import Scheduler
from inference.scheduler.scheduler_output import ScheduledSequence, SchedulerOutput
from inference.scheduler.sequence import Sequence, SequenceStatus
from inference.scheduler.speculation import accept
from inference.scheduler.step_result import SampledToken, StepOutput
from tests.inference.stub_runner import make_sequence, next_token


def make_scheduler(
    num_blocks: int = 16,
    *,
    max_num_seqs: int = 4,
    budget: int = 16,
    block_size: int = 4,
    num_drafts: int = 0,
) -> Scheduler:
    """A small scheduler with blocks of four tokens."""
    return Scheduler(
        BlockManager(num_blocks, block_size),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        num_speculative_tokens=num_drafts,
    )


def run_step(scheduler: Scheduler) -> tuple[SchedulerOutput, list[StepOutput]]:
    """Schedule and finish one step, with the stub's tokens."""
    batch = scheduler.schedule(0.0)
    tokens = [[SampledToken(next_token(list(s.sequence.token_ids)))] for s in batch.sampling]
    return batch, scheduler.finish(batch, tokens, 0.0)


def sample(scheduled: ScheduledSequence) -> list[SampledToken]:
    """The token after the last one and after each draft, as if the drafts were accepted."""
    ids = list(scheduled.sequence.token_ids)
    tokens = []
    for draft in [*scheduled.draft_token_ids, None]:
        tokens.append(SampledToken(next_token(ids) % 3))
        ids.append(-1 if draft is None else draft)
    return tokens


class Traffic:
    """Random arrivals, aborts, failures and steps; checks all invariants after each."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.num_blocks = self.rng.randint(3, 24)
        self.scheduler = make_scheduler(
            self.num_blocks,
            max_num_seqs=self.rng.randint(1, 6),
            budget=self.rng.randint(6, 24),
            num_drafts=self.rng.choice([0, 1, 5]),
        )
        self.priorities = self.rng.choice([(0,), (0, 0, 5, -3)])
        self.accepted: dict[str, Sequence] = {}
        self.ended: Counter[str] = Counter()
        self.aborted: set[str] = set()
        prefix = [self.rng.randrange(3) for _ in range(40)]
        self.prefixes = [prefix[: self.rng.randint(0, 40)] for _ in range(3)]

    def add(self) -> None:
        capacity = self.num_blocks * 4
        shared = self.rng.choice(self.prefixes)
        prompt = (shared + [self.rng.randrange(3) for _ in range(self.rng.randint(1, 9))])[
            : capacity - 1
        ]
        most = min(12, capacity + 1 - len(prompt))
        name = str(len(self.accepted))
        max_tokens, priority = self.rng.randint(1, most), self.rng.choice(self.priorities)
        sequence = make_sequence(name, prompt, max_tokens, priority=priority)
        self.scheduler.add(sequence)
        self.accepted[name] = sequence

    def abort(self) -> None:
        live = list(self.scheduler.sequences)
        if live:
            victim = self.rng.choice(live)
            output = self.scheduler.abort(victim.request_id, 0.0)
            assert output is not None
            assert not victim.block_table, "an abort frees at once"
            self.aborted.add(victim.request_id)
            self.take([output])

    def step(self, *, fails: bool) -> None:
        if fails:
            batch = self.scheduler.schedule(0.0)
            self.take(self.scheduler.fail(batch.sequences, StepFailed("broken"), 0.0))
            self.aborted.update(sequence.request_id for sequence in batch.sequences)
            return
        before = {s.request_id: s.num_computed_tokens for s in self.scheduler.sequences}
        batch = self.scheduler.schedule(0.0)
        self.check_batch(batch)
        tokens = accept(batch.sampling, [token for s in batch.sampling for token in sample(s)])
        self.take(self.scheduler.finish(batch, tokens, 0.0))
        assert batch.sequences or not before, "there are live sequences, and none was scheduled"

    def check_batch(self, batch: SchedulerOutput) -> None:
        counts = [scheduled.num_tokens for scheduled in batch.scheduled]
        assert all(count > 0 for count in counts)
        assert sum(counts) <= self.scheduler.max_num_batched_tokens
        assert self.scheduler.num_running <= self.scheduler.max_num_seqs
        waiting = list(self.scheduler.sequences)[self.scheduler.num_running :]
        assert self.scheduler.num_waiting_tokens == sum(each.num_tokens for each in waiting)
        for scheduled in batch.scheduled:
            sequence = scheduled.sequence
            end = sequence.num_computed_tokens + scheduled.num_tokens
            num_tokens = sequence.num_tokens + len(scheduled.draft_token_ids)
            assert end <= min(num_tokens, len(sequence.block_table) * 4)
            assert num_tokens < sequence.num_prompt_tokens + sequence.max_tokens
            written = sequence.block_table[sequence.num_computed_tokens // 4 :]
            held = self.scheduler.block_manager.exclusive_blocks([sequence])
            assert set(written) <= set(held), "a sequence writes into a shared block"

    def take(self, outputs: list[StepOutput]) -> None:
        for output in outputs:
            assert self.ended[output.request_id] == 0, "an output follows the finish"
            self.ended[output.request_id] += output.finish is not None

    def check(self) -> None:
        self.scheduler.check_integrity()
        waiting = [s for s in self.scheduler.sequences if s.status is SequenceStatus.WAITING]
        order = [(s.priority, int(s.request_id)) for s in waiting if not s.num_preemptions]
        assert order == sorted(order), "the waiting queue is not in order of priority and arrival"
        for sequence in self.scheduler.sequences:
            assert sequence.num_overtaken_tokens <= sequence.num_tokens

    def drain(self) -> None:
        for _ in range(10_000):
            if not self.scheduler.has_work:
                break
            self.step(fails=False)
            self.check()
        assert not self.scheduler.has_work
        assert self.scheduler.block_manager.num_used_blocks == 0
        assert self.ended == Counter(dict.fromkeys(self.accepted, 1)), (
            "each sequence has exactly one finish"
        )
        for name, sequence in self.accepted.items():
            if name not in self.aborted:
                assert sequence.num_completion_tokens == sequence.max_tokens
                ids = list(sequence.token_ids)
                for end in range(sequence.num_prompt_tokens, len(ids)):
                    assert ids[end] == next_token(ids[:end]) % 3


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_random_traffic_keeps_every_invariant(seed: int) -> None:
    """Arrivals, aborts, failed steps, preemptions, evictions; integrity is checked after each."""
    traffic = Traffic(seed)
    for _ in range(100):
        act = traffic.rng.random()
        if act < 0.3:
            traffic.add()
        elif act < 0.38:
            traffic.abort()
        else:
            traffic.step(fails=act > 0.98)
        traffic.check()
    traffic.drain()


def test_decodes_go_before_prefills() -> None:
    """A long prompt gets the token budget that the decodes leave."""
    scheduler = make_scheduler(budget=8)
    scheduler.add(make_sequence("a", [1, 2], max_tokens=9))
    run_step(scheduler)
    scheduler.add(make_sequence("b", list(range(20))))
    batch, outputs = run_step(scheduler)
    assert [(s.request_id) for s in batch.sequences] == ["a", "b"]
    assert [output.request_id for output in outputs] == ["a"]
    assert [s.num_computed_tokens for s in batch.sequences] == [3, 7]


def test_without_free_blocks_the_youngest_is_preempted_and_served_later() -> None:
    """The preempted sequence returns to the head of the waiting queue."""
    scheduler = make_scheduler(num_blocks=6, budget=64)
    old, young = (
        make_sequence(name, [1, 2, 3, i] * 2, max_tokens=9) for i, name in enumerate("ab")
    )
    scheduler.add(old)
    scheduler.add(young)
    while scheduler.num_preemptions == 0:
        run_step(scheduler)
    assert young.status is SequenceStatus.WAITING
    assert (young.num_preemptions, old.num_preemptions) == (1, 0)
    while scheduler.has_work:
        run_step(scheduler)
        scheduler.check_integrity()
    assert (old.num_completion_tokens, young.num_completion_tokens) == (9, 9)


def test_lower_priorities_start_earlier() -> None:
    """Equal ones in order of arrival; a sequence that runs is not interrupted."""
    scheduler = make_scheduler(max_num_seqs=1)
    priorities = {"a": 0, "b": 0, "c": 5, "d": -1, "e": 0, "f": -1}
    for number, (name, priority) in enumerate(priorities.items()):
        scheduler.add(make_sequence(name, [number] * 4, max_tokens=2, priority=priority))
        if name == "a":
            run_step(scheduler)
    finished = []
    while scheduler.has_work:
        _, outputs = run_step(scheduler)
        finished += [output.request_id for output in outputs if output.finish is not None]
    assert finished == ["a", "d", "f", "b", "e", "c"]


def test_the_latest_priority_is_preempted_first() -> None:
    """Also if it is the oldest; it is not overtaken while it waits to continue."""
    scheduler = make_scheduler(num_blocks=6, budget=64)
    late, early = (
        make_sequence(name, [1, 2, 3, i] * 2, max_tokens=9, priority=priority)
        for i, (name, priority) in enumerate([("a", 3), ("b", 0)])
    )
    scheduler.add(late)
    scheduler.add(early)
    while scheduler.num_preemptions == 0:
        run_step(scheduler)
    assert (late.num_preemptions, early.num_preemptions) == (1, 0)
    scheduler.add(make_sequence("c", [7] * 8, max_tokens=9, priority=-5))
    assert [each.request_id for each in scheduler.sequences if each.status == "waiting"] == [
        "a",
        "c",
    ]
    while scheduler.has_work:
        run_step(scheduler)
        scheduler.check_integrity()
    assert (late.num_completion_tokens, early.num_completion_tokens) == (9, 9)


def test_a_cached_prefix_is_shared_while_it_is_in_use() -> None:
    """A second sequence reuses the first one's full blocks; at least one token is computed."""
    scheduler = make_scheduler(budget=64)
    first = make_sequence("a", list(range(12)), max_tokens=9)
    scheduler.add(first)
    run_step(scheduler)
    second = make_sequence("b", list(range(12)))
    scheduler.add(second)
    run_step(scheduler)
    assert second.num_cached_tokens == 8
    assert second.block_table[:2] == first.block_table[:2]
    assert second.block_table[2] != first.block_table[2]


def test_the_end_of_a_prefix_is_evicted_first() -> None:
    """The beginning of an old prefix stays, because later blocks are useless without it."""
    manager = BlockManager(4, 4)
    old = make_sequence("old", list(range(13)))
    assert manager.allocate(old)
    old.num_computed_tokens = 12
    manager.commit(old)
    manager.free(old)
    assert manager.num_cached_tokens == 12
    new = make_sequence("new", [50, 51, 52, 53, 54, 55, 56])
    assert manager.allocate(new)
    again = make_sequence("again", list(range(9)))
    assert manager.allocate(again) is False, "one block is missing"
    manager.free(new)
    assert manager.allocate(again)
    assert again.num_computed_tokens == 8


def test_a_block_with_another_prefix_is_not_shared() -> None:
    """Hashes are chained: equal ids at equal positions are not enough."""
    manager = BlockManager(16, 4)
    first = make_sequence("a", [1, 1, 1, 1, 5, 5, 5, 5, 0])
    assert manager.allocate(first)
    first.num_computed_tokens = 8
    manager.commit(first)
    second = make_sequence("b", [2, 2, 2, 2, 5, 5, 5, 5, 0])
    assert manager.allocate(second)
    assert second.num_computed_tokens == 0


def test_a_failed_sequence_leaves_nothing_in_the_prefix_cache() -> None:
    """Blocks that a failed sequence computed are not reused."""
    scheduler = make_scheduler(budget=64)
    sequence = Sequence("a", [1] * 12, SamplingParams(max_tokens=3))
    scheduler.add(sequence)
    run_step(scheduler)
    assert scheduler.block_manager.num_cached_tokens > 0
    scheduler.fail([sequence], StepFailed("broken"), 0.0)
    assert scheduler.block_manager.num_cached_tokens == 0
    scheduler.check_integrity()
