"""VllmEngine.Generate and Abort over real gRPC, against the same engine's own service."""

from __future__ import annotations

import asyncio
import re
import threading
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from smg_grpc_proto.generated import vllm_engine_pb2 as pb
from tokenizers import Tokenizer

from inference.api.vllm_engine.requests import output_constraint
from inference.engine.engine import Engine
from inference.scheduler.sequence import Sequence
from tests.helpers import eventually
from tests.inference.api.vllm_engine.conftest import Engines, serving
from tests.inference.client import collect, make_request

PROMPT = [40, 41, 42, 43, 44, 45]
NUM_TOKENS = 24
LONG = 3000


def request_of(
    prompt: list[int] | str = PROMPT, *, stream: bool = True, request_id: str = "", **params: Any
) -> pb.GenerateRequest:
    """A greedy request for a few tokens."""
    given = {"text": prompt} if isinstance(prompt, str) else {}
    if not isinstance(prompt, str):
        given["tokenized"] = pb.TokenizedInput(input_ids=prompt)
    values = {"temperature": 0.0, "max_tokens": NUM_TOKENS, "ignore_eos": True, **params}
    return pb.GenerateRequest(
        request_id=request_id, stream=stream, sampling_params=pb.SamplingParams(**values), **given
    )


async def responses_to(engines: Engines, request: pb.GenerateRequest) -> list[Any]:
    return [each async for each in engines.vllm.Generate(request, timeout=20)]


def chunks_of(responses: list[Any], index: int = 0) -> list[Any]:
    return [
        each.chunk for each in responses if each.HasField("chunk") and each.chunk.index == index
    ]


def completes_of(responses: list[Any]) -> list[Any]:
    return [each.complete for each in responses if each.HasField("complete")]


def ids_of(responses: list[Any], index: int = 0) -> list[int]:
    return [token_id for chunk in chunks_of(responses, index) for token_id in chunk.token_ids]


async def own_ids(engines: Engines, **sampling: Any) -> list[int]:
    """The tokens of the engine's own service for the same request."""
    messages = await collect(
        engines.own, make_request(PROMPT, **{"max_tokens": NUM_TOKENS, **sampling})
    )
    return [token_id for message in messages for token_id in message.chunk.token_ids]


async def test_chunks_are_deltas_and_the_end_repeats_the_last_one(engines: Engines) -> None:
    """Streamed and unstreamed tokens equal those of the engine's own service; counts are deltas."""
    expected = await own_ids(engines)
    streamed = await responses_to(engines, request_of())
    (end,) = completes_of(streamed)
    chunks = chunks_of(streamed)
    assert ids_of(streamed) == expected
    assert all(chunk.token_ids for chunk in chunks)
    assert [chunk.completion_tokens for chunk in chunks] == [len(c.token_ids) for c in chunks]
    assert list(end.output_ids) == list(chunks[-1].token_ids)
    assert (end.finish_reason, end.prompt_tokens) == ("length", len(PROMPT))
    assert end.completion_tokens == len(chunks[-1].token_ids)
    assert streamed[-1].HasField("complete")

    unstreamed = await responses_to(engines, request_of(stream=False))
    assert len(unstreamed) == 1
    assert list(unstreamed[0].complete.output_ids) == expected
    assert unstreamed[0].complete.completion_tokens == NUM_TOKENS


async def test_zero_is_the_default_and_the_model_has_no_say(engines: Engines) -> None:
    """top_p and the repetition penalty 0 are 1; without max_tokens the context is filled."""
    request = request_of(top_p=0.0, repetition_penalty=0.0)
    assert ids_of(await responses_to(engines, request)) == await own_ids(engines)
    request = request_of([40] * 4090, stream=False)
    request.sampling_params.ClearField("max_tokens")
    (end,) = completes_of(await responses_to(engines, request))
    assert (end.completion_tokens, end.finish_reason) == (6, "length")


async def test_choices_are_interleaved_and_end_once_each(engines: Engines) -> None:
    """`n` sequences, each with its index and one end; a seed counts up, as in vLLM."""
    seeded = {"temperature": 1.0, "seed": 7, "n": 3}
    responses = await responses_to(engines, request_of(request_id="n", **seeded))
    assert sorted(end.index for end in completes_of(responses)) == [0, 1, 2]
    for index in range(3):
        alone = await own_ids(engines, temperature=1.0, seed=7 + index)
        assert ids_of(responses, index) == alone
    assert engines.service._calls.num_running == 0


async def test_a_stop_token_ends_the_completion_with_its_id(engines: Engines) -> None:
    """The stop token is the last id and is named; an end-of-sequence token is not named."""
    whole = await own_ids(engines)
    stop = whole[5]
    (end,) = completes_of(await responses_to(engines, request_of(stop_token_ids=[stop])))
    assert (end.finish_reason, end.matched_token_id) == ("stop", stop)
    assert end.output_ids[-1] == stop
    biased = request_of(ignore_eos=False, logit_bias={1: 100.0}, stream=False)
    (end,) = completes_of(await responses_to(engines, biased))
    assert (end.finish_reason, list(end.output_ids)) == ("stop", [1])
    assert end.WhichOneof("matched_stop") is None


@pytest.mark.parametrize("stream", [True, False])
async def test_a_stop_string_ends_the_sequence_at_its_last_token(
    engines: Engines, folder: Path, stream: bool
) -> None:
    """The tokens end with the one that completes the string; the engine generates no more."""
    whole = await own_ids(engines, max_tokens=400)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = [tokenizer.decode(whole[:number]) for number in range(len(whole) + 1)]
    place = next(n for n in range(4, len(texts)) if "\ufffd" not in texts[n][-2:])
    stop = texts[place][-2:]
    first = next(n for n in range(len(texts)) if stop in texts[n])
    request = request_of(max_tokens=400, stop=["\0 never", stop], stream=stream)
    responses = await responses_to(engines, request)
    (end,) = completes_of(responses)
    given = ids_of(responses) if stream else list(end.output_ids)
    assert given == whole[:first]
    assert (end.finish_reason, end.matched_stop_str) == ("stop", stop)
    await eventually(lambda: engines.engine.load().num_running == 0, "the slot is free")

    late = request_of(max_tokens=400, min_tokens=first + 1, stop=[stop], stream=False)
    (end,) = completes_of(await responses_to(engines, late))
    assert end.completion_tokens > first, "stop strings end no text within min_tokens"


async def test_text_prompts_are_encoded(engines: Engines, folder: Path) -> None:
    """A text gives the tokens of its ids; truncation keeps the last ids."""
    text = '{"name": "value"}' * 200
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    by_text = request_of(text, truncate_prompt_tokens=9)
    (end,) = completes_of(by_text_responses := await responses_to(engines, by_text))
    assert end.prompt_tokens == 9
    assert ids_of(by_text_responses) == ids_of(await responses_to(engines, request_of(ids[-9:])))


async def test_other_requests_run_while_a_long_text_is_encoded(engines: Engines) -> None:
    """The thread that encodes it does not hold the interpreter lock."""
    text = "word " * 10_000
    await responses_to(engines, request_of("word", max_tokens=1))  # the tokenizer is loaded
    encoding = asyncio.ensure_future(engines.service._encode(text))
    num_turns = 0
    while not encoding.done():
        await asyncio.sleep(0)
        num_turns += 1
    assert len(await encoding) >= 10_000
    assert num_turns > 100


async def test_logprobs_of_prompt_and_tokens(engines: Engines) -> None:
    """The prompt's come once, with an empty first entry; the tokens' with their alternatives."""
    responses = await responses_to(engines, request_of(logprobs=2, prompt_logprobs=1))
    first, *others = chunks_of(responses)
    prompt = first.input_logprobs
    assert list(prompt.token_ids) == PROMPT
    assert [each.HasField("value") for each in prompt.token_logprobs] == [False] + [True] * 5
    assert [len(each.token_ids) for each in prompt.top_logprobs] == [0] + [1] * 5
    assert not any(chunk.HasField("input_logprobs") for chunk in others)
    for chunk in [first, *others]:
        given = chunk.output_logprobs
        assert list(given.token_ids) == list(chunk.token_ids)
        assert [each.token_ids[0] for each in given.top_logprobs] == list(chunk.token_ids)
        assert all(value < 0 for value in given.token_logprobs)
    (end,) = completes_of(await responses_to(engines, request_of(logprobs=0, stream=False)))
    assert len(end.output_logprobs.token_logprobs) == NUM_TOKENS
    assert not end.output_logprobs.top_logprobs


async def test_choices_are_kept_to(engines: Engines) -> None:
    """A choice constraint is a regular expression, whatever characters the choices have."""
    choices = ["a b+", "c|d", "e\n[f", "-g"]
    constraint = output_constraint(pb.SamplingParams(choice=pb.ChoiceConstraint(choices=choices)))
    assert constraint is not None
    assert all(re.fullmatch(constraint.text, each) for each in choices)
    for only in choices:
        request = request_of(
            choice=pb.ChoiceConstraint(choices=[only]), ignore_eos=False, stream=False
        )
        (end,) = completes_of(await responses_to(engines, request))
        text = Tokenizer.from_file(str(engines.service._files.folder) + "/tokenizer.json").decode(
            list(end.output_ids)
        )
        assert (text, end.finish_reason) == (only, "stop")


async def test_an_abort_ends_all_calls_with_the_id(engines: Engines) -> None:
    """Each stream ends OK with the reason abort; the slots are free; unknown ids are ignored."""
    endless = request_of(request_id="same", max_tokens=LONG, n=2)
    calls = [engines.vllm.Generate(endless, timeout=20) for _ in range(2)]
    for call in calls:
        await call.read()
    await engines.vllm.Abort(pb.AbortRequest(request_ids=["unknown", "same"]), timeout=5)
    for call in calls:
        responses = []
        while (response := await call.read()) is not grpc.aio.EOF:
            responses.append(response)
        ends = completes_of(responses)
        assert [end.finish_reason for end in ends] == ["abort", "abort"]
        assert await call.code() is grpc.StatusCode.OK
    await eventually(lambda: engines.engine.load().num_running == 0, "the slots are free")
    assert engines.service._calls.num_running == 0


async def test_an_abort_reaches_a_call_that_is_not_accepted_yet(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While its constraint compiles the call has no sequence; it ends when it gets one."""
    compiling, go_on = asyncio.Event(), asyncio.Event()

    async def compile_slowly(engine: object, sequence: Sequence, constraint: object) -> None:
        compiling.set()
        await go_on.wait()

    monkeypatch.setattr(engines.engine, "_compile_constraint", compile_slowly)
    call = engines.vllm.Generate(
        request_of(request_id="early", max_tokens=LONG, regex="a*"), timeout=20
    )
    reading = asyncio.create_task(call.read())
    await compiling.wait()
    await engines.vllm.Abort(pb.AbortRequest(request_ids=["early"]), timeout=5)
    go_on.set()
    response = await reading
    while not response.HasField("complete"):
        response = await call.read()
    assert response.complete.finish_reason == "abort"


async def test_leaving_frees_the_slots_of_all_choices(engines: Engines) -> None:
    """A caller that cancels in mid-stream frees the sequences of `n` choices."""
    call = engines.vllm.Generate(request_of(request_id="left", max_tokens=LONG, n=3), timeout=20)
    await call.read()
    await eventually(lambda: engines.engine.load().num_running == 3, "all choices run")
    call.cancel()
    await eventually(lambda: engines.engine.load().num_running == 0, "the slots are free")
    await eventually(lambda: engines.service._calls.num_running == 0, "the call has ended")


async def test_calls_of_many_choices_do_not_hold_up_another_call(
    folder: Path, no_tasks_left: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends while most of their choices still wait; each of them ends."""
    may_step, step = threading.Event(), Engine.step

    def gated(engine: Engine) -> Any:
        may_step.wait()
        return step(engine)

    monkeypatch.setattr(Engine, "step", gated)
    may_step.set()
    async with (
        serving(folder, max_num_seqs=8, max_num_waiting=64) as engines,
        AsyncExitStack() as stack,
    ):
        stack.callback(may_step.set)  # the engine stops between two steps
        ended = 0

        async def flood(number: int) -> None:
            nonlocal ended
            request = request_of(request_id=f"flood-{number}", max_tokens=60, n=24)
            async for response in engines.vllm.Generate(request, timeout=60):
                ended += response.HasField("complete")

        async def other() -> int:
            request = request_of(request_id="other", max_tokens=4)
            responses = [each async for each in engines.vllm.Generate(request, timeout=60)]
            assert completes_of(responses)
            return ended

        live = engines.engine._streams
        may_step.clear()
        floods = [asyncio.create_task(flood(number)) for number in range(2)]
        await eventually(lambda: live.num_live == 48, "they wait", 30)
        may_step.set()
        await eventually(lambda: engines.engine.load().num_running == 7, "one place is kept", 30)
        may_step.clear()
        before, late = ended, asyncio.create_task(other())
        await eventually(lambda: len(live._groups) == 3, "it waits", 30)
        may_step.set()
        assert await late - before <= 2 * 8
        await asyncio.gather(*floods)
        assert ended == 2 * 24


IMAGE = pb.MultimodalInputs(mm_hashes=["0"])


REFUSALS: list[tuple[pb.GenerateRequest, str]] = [
    (request_of([]), "tokenized.input_ids must hold at least 1 token"),
    (request_of([9999]), "tokenized.input_ids token ids must be between 0 and 419"),
    (request_of([1] * 5000), "This model's maximum context length is 4096 tokens"),
    (request_of(max_tokens=0), "sampling_params.max_tokens must be at least 1, given 0"),
    (request_of(temperature=3), "sampling_params.temperature must be between 0 and 2"),
    (request_of(logprobs=-1), "sampling_params.logprobs must be between 0 and 20, given -1"),
    (request_of(logprobs=99), "sampling_params.logprobs must be between 0 and 20, given 99"),
    (request_of(n=999), "sampling_params.n must be at most 128, given 999"),
    (request_of(stop=["x"] * 65), "sampling_params.stop must be at most 64 strings"),
    (request_of(stop=[""]), "sampling_params.stop must be strings of 1 to 256 characters"),
    (request_of(json_object=False), "sampling_params.json_object must be true, given false"),
    (request_of(json_schema="{"), "sampling_params.json_schema "),
    (request_of(choice=pb.ChoiceConstraint()), "sampling_params.choice must have at least 1"),
    (request_of(structural_tag="{}"), "sampling_params.structural_tag must be absent"),
    (
        request_of(truncate_prompt_tokens=0),
        "sampling_params.truncate_prompt_tokens must be -1, or between 1 and 4095, given 0",
    ),
    (pb.GenerateRequest(mm_inputs=IMAGE), "mm_inputs must be absent: the model has no multi"),
    (pb.GenerateRequest(extra_mm_inputs=[IMAGE]), "extra_mm_inputs must be absent"),
    (pb.GenerateRequest(media_refs=pb.MediaRefs()), "media_refs must be absent"),
    (pb.GenerateRequest(kv_transfer_params_json="{}"), "kv_transfer_params_json must be"),
    (pb.GenerateRequest(data_parallel_rank=1), "data_parallel_rank must be 0, the only rank"),
]


async def test_refusals_name_the_field_as_it_was_sent(engines: Engines) -> None:
    """INVALID_ARGUMENT, before any message."""
    for request, expected in REFUSALS:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await responses_to(engines, request)
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert str(error.value.details()).startswith(expected), error.value.details()


async def test_a_full_queue_refuses_the_whole_call(engines: Engines) -> None:
    """RESOURCE_EXHAUSTED with RetryInfo if one choice has no room; the others end with it."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await responses_to(engines, request_of(n=7, max_tokens=LONG))
    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "grpc-status-details-bin" in dict(error.value.trailing_metadata())
    await eventually(lambda: engines.engine.load().num_running == 0, "the slots are free")
