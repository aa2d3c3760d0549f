"""The engine without its thread: admission, deadlines, aborts, and steps that fail."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch

from inference.engine.engine import Engine
from inference.engine.errors import (
    ContextTooLong,
    DeadlineExceeded,
    DuplicateRequest,
    InvalidPrompt,
    InvalidSamplingParams,
    Overloaded,
    SequenceFailed,
    StepFailed,
)
from inference.engine.step_loop import MAX_CONSECUTIVE_FAILURES, PendingStep
from inference.sampling.sampling_params import SamplingParams
from inference.scheduler.scheduler_output import SchedulerOutput
from inference.scheduler.sequence import Sequence
from inference.scheduler.step_result import StepOutput
from mesh.protocol.finish import FinishReason
from tests.inference.stub_runner import (
    LaunchedStub,
    StubRunner,
    make_sequence,
    make_stub_engine,
    next_token,
)


def drain(engine: Engine) -> list[StepOutput]:
    """Run steps until there is no work; returns all outputs in order."""
    outputs: list[StepOutput] = []
    while engine.has_work:
        outputs += engine.step()
    return outputs


def finishes(outputs: list[StepOutput]) -> dict[str, FinishReason]:
    """The finish reason of each sequence that ended."""
    return {o.request_id: o.finish.reason for o in outputs if o.finish is not None}


def test_it_runs_a_sequence_to_its_length() -> None:
    """Each sampled token is in one output, and the last one comes with the finish."""
    engine = make_stub_engine(StubRunner())
    engine.add(make_sequence("a", [1, 2, 3], max_tokens=3))
    outputs = drain(engine)
    expected = [1, 2, 3]
    for _ in range(3):
        expected.append(next_token(expected))
    assert [token for output in outputs for token in output.token_ids] == expected[3:]
    assert [output.finish is not None for output in outputs] == [False, False, True]
    finish = outputs[-1].finish
    assert finish is not None
    assert (finish.reason, finish.num_prompt_tokens) == (FinishReason.LENGTH, 3)
    timings = finish.timings
    assert timings.scheduled is not None
    assert timings.first_token is not None
    assert timings.arrival <= timings.scheduled <= timings.first_token <= timings.finish


def test_a_stop_token_ends_a_sequence_and_is_part_of_it() -> None:
    """The reason is stop; the stop token is the last id and counts as completion."""
    engine = make_stub_engine(StubRunner())
    stop = next_token([1, 2, 3])
    params = SamplingParams(max_tokens=9, stop_token_ids=frozenset([stop]))
    engine.add(Sequence("a", [1, 2, 3], params))
    [output] = drain(engine)
    assert output.token_ids == [stop]
    assert output.finish is not None
    assert output.finish.reason is FinishReason.STOP
    assert output.finish.num_completion_tokens == 1


@pytest.mark.parametrize(
    ("sequence", "error", "message"),
    [
        (make_sequence("a", []), InvalidPrompt, "at least 1 token. Given: 0"),
        (make_sequence("a", [1, 100]), InvalidPrompt, "between 0 and 99. Given: 100"),
        (make_sequence("a", [-1, 5]), InvalidPrompt, "between 0 and 99. Given: -1"),
        (
            make_sequence("a", [1] * 30, 11),
            ContextTooLong,
            "context length is 40 tokens. However, you requested 41",
        ),
        (
            Sequence("a", [1] * 40, SamplingParams()),
            ContextTooLong,
            "tokens (40 in the prompt, 1 in the completion).",
        ),
        (
            Sequence("a", [1], SamplingParams(logit_bias={100: 1.0})),
            InvalidSamplingParams,
            "logit_bias ids must be between 0 and 99. Given: 100",
        ),
        (
            Sequence("a", [1] * 9, SamplingParams(max_tokens=4), num_resumed_tokens=4),
            InvalidPrompt,
            "less than max_tokens (4). Given: 4",
        ),
    ],
)
def test_a_sequence_that_can_never_run_is_refused(
    sequence: Sequence, error: type[Exception], message: str
) -> None:
    """The message has the limit and the given value, and the engine keeps nothing."""
    engine = make_stub_engine(StubRunner(), max_context=40)
    with pytest.raises(error) as caught:
        engine.add(sequence)
    assert message in str(caught.value)
    assert not engine.has_work


def test_a_sequence_larger_than_the_kv_cache_is_refused() -> None:
    """A cache of 16 tokens fits a sequence of 17, because the last token is never stored."""
    engine = make_stub_engine(StubRunner(), num_blocks=4)
    with pytest.raises(ContextTooLong, match=r"18 tokens .* more than the KV cache's 16"):
        engine.add(make_sequence("a", [1] * 10, max_tokens=8))
    engine.add(make_sequence("b", [1] * 10, max_tokens=7))
    assert finishes(drain(engine)) == {"b": FinishReason.LENGTH}


def test_without_max_tokens_the_context_is_the_limit() -> None:
    """Generation continues to the end of the context."""
    engine = make_stub_engine(StubRunner(), max_context=20)
    sequence = Sequence("a", [1] * 5, SamplingParams())
    engine.add(sequence)
    assert finishes(drain(engine)) == {"a": FinishReason.LENGTH}
    assert sequence.num_tokens == 20


def test_the_waiting_queue_is_bounded() -> None:
    """One sequence too many is refused; when one has left, another is admitted."""
    engine = make_stub_engine(StubRunner(), max_num_seqs=2, max_num_waiting=3)
    for number in range(5):
        engine.add(make_sequence(str(number), [1]))
    with pytest.raises(Overloaded, match="2 sequences may run and 3 wait"):
        engine.add(make_sequence("x", [1]))
    engine.abort("4")
    engine.add(make_sequence("x", [1]))


def test_a_request_id_in_use_is_refused() -> None:
    """The live sequence continues."""
    engine = make_stub_engine(StubRunner())
    engine.add(make_sequence("a", [1]))
    with pytest.raises(DuplicateRequest):
        engine.add(make_sequence("a", [2]))
    assert finishes(drain(engine)) == {"a": FinishReason.LENGTH}


@pytest.mark.parametrize("num_steps", [0, 1, 2, 3])
def test_an_abort_frees_the_blocks_at_once(num_steps: int) -> None:
    """No step is needed, whether the sequence waits, prefills or decodes."""
    engine = make_stub_engine(StubRunner(), max_num_batched_tokens=16)
    engine.add(make_sequence("a", [1] * 30, max_tokens=50))
    for _ in range(num_steps):
        engine.step()
    output = engine.abort("a")
    assert output is not None
    assert output.finish is not None
    assert output.finish.reason is FinishReason.ABORT
    assert engine.load().kv_usage == 0
    assert not engine.has_work
    assert engine.abort("a") is None


def test_an_expired_sequence_runs_in_no_further_step() -> None:
    """Waiting or running, it ends with the deadline as the cause before the next step."""
    runner = StubRunner()
    engine = make_stub_engine(runner)
    engine.add(make_sequence("late", [1], deadline=time.monotonic() - 1))
    running = make_sequence("running", [1], max_tokens=50, deadline=time.monotonic() + 100)
    engine.add(running)
    outputs = engine.step()
    running.deadline = time.monotonic() - 1
    outputs += engine.step()
    assert runner.batches == [["running"]]
    assert finishes(outputs) == {"late": FinishReason.ABORT, "running": FinishReason.ABORT}
    errors = [output.finish.error for output in outputs if output.finish is not None]
    assert all(isinstance(error, DeadlineExceeded) for error in errors)


def test_a_failed_step_ends_only_the_sequences_that_it_ran() -> None:
    """They end with an error; waiting sequences are served, and the engine stays healthy."""
    runner = StubRunner()
    engine = make_stub_engine(runner, max_num_seqs=1)
    engine.add(make_sequence("a", [1, 2]))
    engine.add(make_sequence("b", [1, 2]))
    runner.error = RuntimeError("broken kernel")
    [output] = engine.step()
    assert output.request_id == "a"
    assert output.finish is not None
    assert output.finish.reason is FinishReason.ERROR
    assert isinstance(output.finish.error, SequenceFailed)
    assert "broken kernel" not in str(output.finish.error)
    runner.error = None
    assert finishes(drain(engine)) == {"b": FinishReason.LENGTH}
    assert engine.healthy


def test_a_step_that_fails_several_sequences_is_no_failure_of_one() -> None:
    """Their error says so: the caller judges the replica by it."""
    runner = StubRunner()
    engine = make_stub_engine(runner)
    for name in "ab":
        engine.add(make_sequence(name, [1, 2]))
    runner.error = RuntimeError("broken kernel")
    outputs = engine.step()
    assert all(isinstance(each.finish and each.finish.error, StepFailed) for each in outputs)
    assert finishes(outputs) == {"a": FinishReason.ERROR, "b": FinishReason.ERROR}


def test_requests_that_break_a_step_do_not_break_the_engine() -> None:
    """After three of them the engine tests itself, and goes on because that step works."""
    runner = StubRunner()
    engine = make_stub_engine(runner)
    launch = runner.launch

    def poisoned(plan: SchedulerOutput, previous: PendingStep | None = None) -> LaunchedStub:
        if any(sequence.request_id == "poison" for sequence in plan.sequences):
            raise RuntimeError("broken by this request")
        return launch(plan, previous)

    runner.launch = poisoned  # type: ignore[method-assign]
    for _ in range(20):
        engine.add(make_sequence("poison", [1], max_tokens=1))
        [output] = engine.step()
        assert output.finish is not None
        assert isinstance(output.finish.error, SequenceFailed)
        assert engine.healthy
    engine.add(make_sequence("good", [1], max_tokens=1))
    assert finishes(drain(engine)) == {"good": FinishReason.LENGTH}
    engine.check_when_idle()


def test_an_engine_that_is_never_idle_breaks_after_many_failures() -> None:
    """Then it cannot test itself."""
    runner = StubRunner()
    engine = make_stub_engine(runner, max_num_seqs=1, max_num_waiting=100)
    runner.error = RuntimeError("broken")
    for number in range(MAX_CONSECUTIVE_FAILURES + 1):
        engine.add(make_sequence(str(number), [1]))
    for _ in range(MAX_CONSECUTIVE_FAILURES):
        assert engine.healthy
        engine.step()
    assert not engine.healthy


def test_an_engine_whose_steps_keep_failing_is_unhealthy() -> None:
    """Three failures in a row and a failed self-test; a successful step resets the count."""
    runner = StubRunner()
    engine = make_stub_engine(runner)
    for number in range(5):
        runner.error = None if number == 2 else RuntimeError("broken")
        engine.add(make_sequence("a", [1], max_tokens=1))
        engine.step()
        assert engine.healthy
    engine.add(make_sequence("a", [1], max_tokens=1))
    engine.step()
    assert not engine.healthy


def test_an_engine_that_cannot_recover_is_unhealthy() -> None:
    """When a device is lost, the runner's recovery fails."""
    runner = StubRunner()
    runner.error, runner.recover_error = RuntimeError("broken"), RuntimeError("device lost")
    engine = make_stub_engine(runner)
    engine.add(make_sequence("a", [1]))
    assert finishes(engine.step()) == {"a": FinishReason.ERROR}
    assert not engine.healthy


def test_a_shared_prefix_survives_the_failure_of_one_sequence() -> None:
    """Only blocks that no other sequence reads are cleared."""
    runner = StubRunner()
    engine = make_stub_engine(runner)
    prefix = list(range(8))
    engine.add(make_sequence("first", [*prefix, 1], max_tokens=1))
    drain(engine)
    sequences = [make_sequence(name, [*prefix, 2]) for name in ("good", "bad")]
    for sequence in sequences:
        engine.add(sequence)
    runner.not_finite = {"bad"}
    outputs = engine.step()
    good, _ = sequences
    assert good.num_cached_tokens == 8
    assert runner.recovered
    assert not set(runner.recovered) & set(good.block_table)
    assert finishes(outputs + drain(engine)) == {
        "good": FinishReason.LENGTH,
        "bad": FinishReason.ERROR,
    }


def test_nan_does_not_reach_later_sequences(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sequence that ends with NaN logits leaves no NaN in the blocks that others reuse."""
    greedy = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)

    def completions(engine: Engine) -> list[list[int]]:
        sequences = [Sequence(str(n), range(n, n + n), greedy) for n in (3, 40)]
        for sequence in sequences:
            engine.add(sequence)
        outputs = drain(engine)
        assert set(finishes(outputs).values()) == {FinishReason.LENGTH}
        return [list(sequence.token_ids) for sequence in sequences]

    expected = completions(make_engine())
    engine = make_engine()

    def no_numbers(q: torch.Tensor, *_: object) -> torch.Tensor:
        return torch.full_like(q, float("nan"))

    with monkeypatch.context() as broken:
        broken.setattr("inference.model.layers.torch_operations.rotate", no_numbers)
        engine.add(Sequence("bad", [1] * 20, greedy))
        assert finishes(drain(engine)) == {"bad": FinishReason.ERROR}
    assert completions(engine) == expected
