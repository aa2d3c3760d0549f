"""Requests take turns: one of many sequences delays another by a sequence, and is not starved."""

from __future__ import annotations

import random

from inference.sampling.sampling_params import SamplingParams
from inference.scheduler.block_manager import BlockManager
from inference.scheduler.scheduler import RESERVED_SHARE, Scheduler
from inference.scheduler.sequence import Sequence, SequenceStatus
from inference.scheduler.step_result import SampledToken
from inference.scheduler.waiting_queue import LARGE_REQUEST, WaitingQueue


def sequence(name: str, group: str, *, max_tokens: int = 64, priority: int = 0) -> Sequence:
    """A sequence of the request `group`, with a prompt of 4 tokens."""
    params = SamplingParams(max_tokens=max_tokens, priority=priority)
    made = Sequence(name, [1, 2, 3, 4], params, group=group)
    made.max_tokens = max_tokens
    return made


class Steps:
    """A scheduler whose sequences run to their ends."""

    def __init__(self, max_num_seqs: int = 64) -> None:
        self.scheduler = Scheduler(
            BlockManager(4096, 16), max_num_seqs=max_num_seqs, max_num_batched_tokens=2048
        )
        self.number = 0

    def add_request(self, group: str, number: int, **options: int) -> list[Sequence]:
        sequences = [sequence(f"{group}-{each}", group, **options) for each in range(number)]
        for each in sequences:
            self.scheduler.add(each)
        return sequences

    def step(self) -> None:
        self.number += 1
        plan = self.scheduler.schedule(float(self.number))
        tokens = [[SampledToken(1)] for _ in plan.sampling]
        self.scheduler.finish(plan, tokens, float(self.number))
        self.scheduler.check_integrity()

    def steps_until_started(self, waiting: Sequence, most: int = 1000) -> int:
        """Steps until a sequence runs."""
        for number in range(most):
            if waiting.status is not SequenceStatus.WAITING:
                return number
            self.step()
        raise AssertionError("it never starts")


def test_requests_of_many_sequences_do_not_hold_up_others() -> None:
    """Eight of 128 sequences each; requests that come later start in the next step."""
    steps = Steps()
    flood = [each for n in range(8) for each in steps.add_request(f"flood-{n}", 128)]
    for _ in range(20):
        steps.step()
    assert steps.scheduler.num_running == 64 - 64 // RESERVED_SHARE
    for name in "abc":
        [late, *_] = steps.add_request(name, 2)
        assert steps.steps_until_started(late) == 1
    while steps.scheduler.has_work:
        steps.step()
    assert all(each.num_completion_tokens == 64 for each in flood)


def test_a_place_is_kept_for_other_requests() -> None:
    """Further sequences of one request never fill a step; a newcomer starts at once."""
    steps = Steps()
    steps.add_request("flood", 128)
    for _ in range(5):
        steps.step()
    reserved = 64 // RESERVED_SHARE
    assert steps.scheduler.num_running == 64 - reserved
    late = [each for n in range(reserved) for each in steps.add_request(f"late-{n}", 1)]
    steps.step()
    assert {each.status for each in late} == {SequenceStatus.RUNNING}


def test_the_first_of_few_sequences_has_a_place() -> None:
    """Two requests of three and of seven sequences start beside a full step of others."""
    steps = Steps()
    steps.add_request("flood", 128)
    for _ in range(5):
        steps.step()
    for number in (3, 7):
        first, *_, last = steps.add_request(f"few-{number}", number)
        steps.step()
        assert first.status is SequenceStatus.RUNNING
        assert last.status is SequenceStatus.WAITING


def test_few_places_are_all_used() -> None:
    """A small engine reserves none: a request of two sequences runs both."""
    steps = Steps(max_num_seqs=2)
    steps.add_request("both", 2)
    steps.step()
    assert steps.scheduler.num_running == 2


def test_a_request_of_many_sequences_is_not_starved() -> None:
    """Its last one starts although a full queue of other requests waits all the time."""
    steps = Steps(max_num_seqs=8)
    many = steps.add_request("many", 40, max_tokens=2)
    number = 0
    while many[-1].status is SequenceStatus.WAITING:
        while steps.scheduler.num_waiting < 56:
            number += 1
            steps.add_request(f"one-{number}", 1, max_tokens=2)
        steps.step()
        assert steps.number < 40 * 56 // 4
    ended = sum(each.finish is not None for each in many)
    assert ended >= 30


def test_single_sequences_are_first_come_first_served() -> None:
    """Beside a request of many, in the order in which they came."""
    queue = WaitingQueue()
    for number in range(5):
        queue.append(sequence(f"many-{number}", "many"))
    singles = [sequence(f"{number}", f"{number}") for number in range(5)]
    for each in singles:
        queue.append(each)
    names = [each.request_id for each in queue]
    assert names == ["many-0", *(each.request_id for each in singles), *names[6:]]
    assert names[6:] == [f"many-{number}" for number in range(1, 5)]


def test_a_priority_goes_before_turns() -> None:
    """Also of the last sequence of an urgent request."""
    queue = WaitingQueue()
    queue.append(sequence("normal", "normal"))
    for number in range(3):
        queue.append(sequence(f"urgent-{number}", "urgent", priority=-1))
    assert [each.request_id for each in queue][-1] == "normal"


def test_the_preempted_first_of_a_large_request_is_not_overtaken() -> None:
    """It has started, so it does not become one of the further sequences."""
    queue = WaitingQueue()
    first, *others = (sequence(f"many-{number}", "many") for number in range(LARGE_REQUEST + 1))
    queue.append(first)
    queue.append(others[0])
    queue.start(first)
    queue.append_left(first)
    first.num_preemptions += 1
    for each in others[1:]:
        queue.append(each)
    queue.append(sequence("late", "late"))
    assert list(queue.startable(firsts_only=True)) == [first]


def test_an_id_of_a_sequence_that_has_ended_is_used_again() -> None:
    """The new sequence, of another request, does not count as the first of the old one."""
    queue = WaitingQueue()
    first, *others = (sequence(f"many-{number}", "many") for number in range(LARGE_REQUEST + 1))
    queue.append(first)
    queue.append(others[0])
    queue.start(first)
    queue.append(sequence(first.request_id, "one"))
    for each in others[1:]:
        queue.append(each)
    assert queue.num_further == sum(each.is_further for each in queue)


def test_the_counts_of_the_queue_match_its_sequences() -> None:
    """After any additions, starts, preemptions and ends."""
    choose = random.Random(3)
    queue, running, number = WaitingQueue(), list[Sequence](), 0
    for _ in range(3000):
        action = choose.random()
        if action < 0.5:
            number += 1
            group = f"g{choose.randrange(6)}"
            queue.append(sequence(f"{number}", group, priority=choose.choice((-1, 0, 0, 2))))
        elif action < 0.7 and len(queue):
            first = next(queue.startable())
            queue.start(first)
            running.append(first)
        elif action < 0.8 and running:
            preempted = running.pop(choose.randrange(len(running)))
            queue.append_left(preempted)
            preempted.num_preemptions += 1
        elif len(queue):
            queue.remove(choose.choice(list(queue)))
        waiting = list(queue)
        assert len(queue) == len(waiting)
        assert queue.num_tokens == sum(each.num_tokens for each in waiting)
        assert queue.num_further == sum(each.is_further for each in waiting)
        fresh = [(each.priority, each.turn) for each in waiting if not each.num_preemptions]
        assert sorted(fresh) == fresh
        firsts = list(queue.startable(firsts_only=True))
        assert not any(each.is_further for each in firsts)
    for each in list(queue):
        queue.remove(each)
    assert not queue._requests
    assert not queue._by_order
    assert not queue._orders
