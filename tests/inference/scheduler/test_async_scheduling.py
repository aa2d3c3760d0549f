"""Async scheduling: steps are launched before the tokens of the previous step are known."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from inference.engine.engine import Engine
from inference.engine.errors import EngineError
from inference.engine.step_loop import PendingStep
from inference.sampling.sampling_params import SamplingParams
from inference.scheduler.scheduler_output import SchedulerOutput
from inference.scheduler.sequence import Sequence
from mesh.protocol.finish import FinishReason
from tests.inference.model.test_parity import prompts, run
from tests.inference.stub_engine import expected_tokens
from tests.inference.stub_runner import StubRunner, make_sequence, make_stub_engine


def run_out(engine: Engine) -> None:
    """Run steps until no sequence is left; then check the accounting of the blocks."""
    while engine.has_work:
        engine.step()
    engine.check_when_idle()


def completion(sequence: Sequence) -> list[int]:
    """The tokens sampled for a sequence."""
    return list(sequence.token_ids[sequence.num_prompt_tokens :])


def test_decodes_overlap_and_end_at_their_length() -> None:
    """All steps except the first overlap, and a sequence of known length gets no extra step."""
    runner = StubRunner(supports_async_scheduling=True)
    engine = make_stub_engine(runner)
    sequences = [make_sequence(str(n), [n, 1, 2], max_tokens=n + 3) for n in range(3)]
    for sequence in sequences:
        engine.add(sequence)
    run_out(engine)
    for sequence in sequences:
        assert completion(sequence) == expected_tokens(
            list(sequence.token_ids[:3]), sequence.max_tokens
        )
        assert sequence.finish is not None
        assert sequence.finish.num_steps == sequence.max_tokens
    assert runner.num_steps == 5
    assert runner.num_steps_ahead == 4
    assert engine.load().kv_usage == 0


def test_a_stop_token_discards_the_overlapped_result() -> None:
    """The stopped sequence's token of the next step is discarded; the others continue."""
    runner = StubRunner(supports_async_scheduling=True)
    engine = make_stub_engine(runner)
    tokens = expected_tokens([5, 1, 2], 9)
    stops = Sequence(
        "stops", [5, 1, 2], SamplingParams(max_tokens=9, stop_token_ids=frozenset([tokens[3]]))
    )
    goes_on = make_sequence("goes on", [7, 1, 2], max_tokens=9)
    engine.add(stops)
    engine.add(goes_on)
    run_out(engine)
    assert completion(stops) == tokens[:4]
    assert stops.finish is not None
    assert (stops.finish.reason, stops.finish.num_steps) == (FinishReason.STOP, 4)
    assert runner.batches[4] == ["stops", "goes on"]
    assert runner.batches[5] == ["goes on"]
    assert completion(goes_on) == expected_tokens([7, 1, 2], 9)


def test_an_abort_between_steps_discards_the_overlapped_result() -> None:
    """If no sequence of the launched step is left, its result is not awaited."""
    runner = StubRunner(supports_async_scheduling=True)
    engine = make_stub_engine(runner)
    first, second = (make_sequence(name, [ord(name), 1], max_tokens=20) for name in "ab")
    for sequence in (first, second):
        engine.add(sequence)
    for _ in range(5):
        engine.step()
    assert engine.abort("a") is not None
    for _ in range(3):
        engine.step()
    assert completion(first) == expected_tokens([97, 1], 5)
    assert completion(second) == expected_tokens([98, 1], 8)
    assert engine.abort("b") is not None
    assert not engine.has_work
    third = make_sequence("c", [99, 1], max_tokens=3)
    engine.add(third)
    run_out(engine)
    assert completion(third) == expected_tokens([99, 1], 3)
    assert engine.load().kv_usage == 0


def test_a_new_sequence_starts_after_the_step_in_flight() -> None:
    """The overlapped step that is already launched does not include it."""
    runner = StubRunner(supports_async_scheduling=True)
    engine = make_stub_engine(runner)
    engine.add(make_sequence("old", [1, 2], max_tokens=20))
    for _ in range(3):
        engine.step()
    engine.add(make_sequence("new", [3, 4], max_tokens=20))
    engine.step()
    engine.step()
    assert runner.batches[3:5] == [["old"], ["old", "new"]]


def test_a_full_batch_overlaps_steps_while_others_wait() -> None:
    """The next sequence starts in the step after the one that ends another by its length."""
    runner = StubRunner(supports_async_scheduling=True)
    engine = make_stub_engine(runner, max_num_seqs=2)
    for number in range(4):
        engine.add(make_sequence(str(number), [number, 2], max_tokens=6))
    run_out(engine)
    assert runner.num_steps == 12
    assert runner.num_steps_ahead == 10


def test_a_launch_that_fails_ends_its_sequences_once() -> None:
    """The step in flight finishes; the next one, which cannot be launched, ends with the error."""
    runner = StubRunner(supports_async_scheduling=True)
    engine = make_stub_engine(runner)
    sequences = [make_sequence(str(n), [n, 2], max_tokens=9) for n in range(2)]
    for sequence in sequences:
        engine.add(sequence)
    engine.step()
    runner.error = RuntimeError("lost")
    assert len(engine.step()) == 2  # the step in flight; the next one cannot be launched
    ended = engine.step()
    assert [output.finish.reason for output in ended if output.finish] == [FinishReason.ERROR] * 2
    runner.error = None
    assert engine.healthy
    assert engine.load().kv_usage == 0


def test_a_result_that_fails_discards_the_overlapped_step() -> None:
    """A GPU reports errors when tokens are fetched. Later requests are served."""
    runner = StubRunner(supports_async_scheduling=True)
    engine = make_stub_engine(runner)
    for number in range(2):
        engine.add(make_sequence(str(number), [number, 2], max_tokens=9))
    engine.step()
    runner.late_error = RuntimeError("lost")
    ended = engine.step()
    assert [output.finish.reason for output in ended if output.finish] == [FinishReason.ERROR] * 2
    assert not engine.has_work
    engine.check_when_idle()
    runner.late_error = None
    late = make_sequence("late", [5, 2], max_tokens=3)
    engine.add(late)
    run_out(engine)
    assert completion(late) == expected_tokens([5, 2], 3)
    assert engine.healthy


def test_a_sequence_without_a_finite_logit_ends() -> None:
    """Its token of the overlapped step is discarded."""
    runner = StubRunner(supports_async_scheduling=True)
    engine = make_stub_engine(runner)
    sequences = {name: make_sequence(name, [ord(name), 2], max_tokens=9) for name in "ab"}
    for sequence in sequences.values():
        engine.add(sequence)
    for _ in range(3):
        engine.step()
    runner.not_finite.add("a")
    run_out(engine)
    broken = sequences["a"].finish
    assert broken is not None
    assert broken.reason is FinishReason.ERROR
    assert completion(sequences["b"]) == expected_tokens([98, 2], 9)
    assert engine.load().kv_usage == 0


def random_sequence(rng: random.Random, request_id: str) -> Sequence:
    """Some sequences have stop tokens, a penalty or an expired deadline."""
    params = SamplingParams(
        max_tokens=rng.randint(1, 30),
        stop_token_ids=frozenset(rng.sample(range(100), rng.choice([0, 2]))),
        frequency_penalty=rng.choice([0.0, 0.0, 0.0, 1.0]),
    )
    prompt = [rng.randrange(100) for _ in range(rng.randint(1, 50))]
    deadline = time.monotonic() if rng.random() < 0.05 else None
    return Sequence(request_id, prompt, params, deadline=deadline)


@pytest.mark.parametrize("seed", range(20))
def test_random_traffic_gives_the_expected_tokens(seed: int) -> None:
    """Random arrivals, stops, deadlines, aborts and NaNs, with a KV cache too small for all."""
    rng = random.Random(seed)
    runner = StubRunner(supports_async_scheduling=True)
    engine = make_stub_engine(runner, num_blocks=24, max_num_seqs=5, max_num_waiting=50)
    live: dict[str, Sequence] = {}
    ended: list[Sequence] = []
    num_delivered: dict[str, int] = {}
    for number in range(400):
        if rng.random() < 0.15 and len(live) < 12:
            sequence = random_sequence(rng, str(number))
            engine.add(sequence)
            live[sequence.request_id] = sequence
            num_delivered[sequence.request_id] = 0
        if live and rng.random() < 0.05:
            engine.abort(rng.choice(list(live)))
        if live and rng.random() < 0.02:
            runner.not_finite.add(rng.choice(list(live)))
        runner.error = RuntimeError("lost") if rng.random() < 0.01 else None
        outputs = engine.step() if engine.has_work else []
        for output in outputs:
            num_delivered[output.request_id] += len(output.token_ids)
        engine._scheduler.check_integrity()
        for request_id, sequence in list(live.items()):
            if sequence.finish is not None:
                ended.append(live.pop(request_id))
    for sequence in live.values():
        engine.abort(sequence.request_id)
    assert engine.healthy
    assert engine.load().kv_usage == 0
    assert runner.num_steps_ahead > 20
    for sequence in ended:
        prompt = list(sequence.token_ids[: sequence.num_prompt_tokens])
        assert completion(sequence) == expected_tokens(prompt, sequence.num_completion_tokens)
        assert num_delivered[sequence.request_id] == sequence.num_completion_tokens


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 1.0, "seed": 7, "top_p": 0.9, "min_tokens": 5},
        {"frequency_penalty": 1.0},
        {"num_logprobs": 2},
    ],
)
@pytest.mark.parametrize("num_speculative_tokens", [0, 4])
def test_overlapped_steps_give_the_same_tokens(
    make_engine: Callable[..., Engine], params: dict[str, Any], num_speculative_tokens: int
) -> None:
    """Also with chunked prefill, preemption and draft tokens."""
    batch = prompts(30, 3, 40, 30)
    options = {
        "kv_cache_tokens": 192,
        "max_num_batched_tokens": 24,
        "max_num_seqs": 4,
        "num_speculative_tokens": num_speculative_tokens,
    }
    engines = [make_engine(**options) for _ in range(2)]
    ahead: Any = engines[1].steps.runner
    ahead.supports_async_scheduling = True
    launched: list[bool] = []
    launch = ahead.launch

    def watched(plan: SchedulerOutput, previous: PendingStep | None = None) -> PendingStep:
        launched.append(previous is not None)
        return launch(plan, previous)

    ahead.launch = watched
    plain, early = (run(engine, batch, num_tokens=40, **params) for engine in engines)
    assert early == plain
    if params or not num_speculative_tokens:  # greedy tokens repeat, so nearly all are drafted
        assert any(launched) == (set(params) <= {"temperature", "seed", "top_p", "min_tokens"})
    assert engines[1].load().kv_usage == 0


def test_prompt_log_probabilities_are_delivered_once(make_engine: Callable[..., Engine]) -> None:
    """A sequence with prompt log probabilities does not take part in overlapped steps."""
    engine = make_engine()
    runner: Any = engine.steps.runner
    runner.supports_async_scheduling = True
    params = SamplingParams(max_tokens=4, temperature=0.0, num_prompt_logprobs=1)
    sequence = Sequence("s", prompts(20)[0], params)
    engine.add(sequence)
    delivered = []
    while engine.has_work:
        delivered += [logprob for output in engine.step() for logprob in output.prompt_logprobs]
    assert len(delivered) == 19


def test_abort_all_ends_the_sequences_of_the_step_in_flight() -> None:
    """No sequence is left, and the next step has no outputs."""
    engine = make_stub_engine(StubRunner(supports_async_scheduling=True))
    for number in range(3):
        engine.add(make_sequence(str(number), [number], max_tokens=9))
    engine.step()
    assert len(engine.abort_all(EngineError("over"))) == 3
    assert not engine.has_work
    assert engine.step() == []
