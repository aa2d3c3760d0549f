"""mesh.v1.InferenceService over real gRPC, on a small real model."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from inference.engine import Engine
from inference.engine_thread import AsyncEngine
from inference.service import SERVICE, InferenceService
from mesh.channel import call_unary, open_stream
from mesh.errors import ErrorKind, MeshError
from mesh.v1 import common_pb2, inference_pb2, inference_pb2_grpc
from tests.helpers import Served, serve
from tests.inference.conftest import LONG_CONTEXT
from tests.inference.families import VOCAB_SIZE, reference_greedy, reference_logits

if TYPE_CHECKING:
    Stub = inference_pb2_grpc.InferenceServiceAsyncStub

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
GREEDY = {"temperature": 0.0, "ignore_eos": True}

Message = inference_pb2.InferenceServiceGenerateResponse


@asynccontextmanager
async def serving(load: Callable[[], Engine]) -> AsyncIterator[Served]:
    """The service on an engine of its own, both stopped at the end."""
    engine = AsyncEngine(load)
    await engine.start()
    try:
        async with serve(InferenceService(engine).servicer) as served:
            yield served
    finally:
        await engine.stop()


@pytest.fixture
async def stub(make_engine: Callable[..., Engine], no_tasks_left: None) -> AsyncIterator[Stub]:
    """A client of a service that runs two sequences and lets one wait."""
    async with serving(lambda: make_engine(max_num_seqs=2, max_num_waiting=1)) as served:
        yield inference_pb2_grpc.InferenceServiceStub(served.channel)


def make_request(
    token_ids: list[int] | None = None, *, resumed: int = 0, **sampling: Any
) -> inference_pb2.InferenceServiceGenerateRequest:
    """A request for a few tokens, greedy where nothing else is said."""
    return inference_pb2.InferenceServiceGenerateRequest(
        token_ids=PROMPT if token_ids is None else token_ids,
        sampling=common_pb2.SamplingParams(**{"max_tokens": 12, **GREEDY, **sampling}),
        num_resumed_tokens=resumed,
    )


async def collect(
    stub: Stub,
    request: inference_pb2.InferenceServiceGenerateRequest,
    timeout: float = 20.0,
) -> list[Message]:
    """Every message of a stream."""
    async with open_stream(stub.Generate, request, timeout=timeout) as responses:
        return [response async for response in responses]


async def generate(stub: Stub, *args: Any, **sampling: Any) -> list[int]:
    """The token ids of a stream."""
    messages = await collect(stub, make_request(*args, **sampling))
    return [token_id for message in messages for token_id in message.chunk.token_ids]


async def get_load(stub: Stub) -> inference_pb2.GetLoadResponse:
    """How busy the service says it is."""
    return await call_unary(stub.GetLoad, inference_pb2.GetLoadRequest(), timeout=5)


async def wait_for_load(stub: Stub, running: int, waiting: int, limit: float = 5.0) -> None:
    """Asks until so many run and wait; fails after `limit` seconds with what it was last."""
    deadline = time.monotonic() + limit
    while True:
        load = await get_load(stub)
        if (load.num_requests_running, load.num_requests_waiting) == (running, waiting):
            return
        assert time.monotonic() < deadline, f"after {limit} s: {load}"
        await asyncio.sleep(0.005)


async def test_a_stream_is_an_empty_chunk_then_tokens_then_one_finish(stub: Stub) -> None:
    """The tokens are those of transformers; the finish counts them and says how long it took."""
    messages = await collect(stub, make_request())
    assert [m.WhichOneof("event") for m in messages] == ["chunk"] * (len(messages) - 1) + ["finish"]
    assert len(messages[0].chunk.token_ids) == 0
    assert all(m.chunk.token_ids for m in messages[1:-1]), "only the first chunk may be empty"
    token_ids = [token_id for m in messages for token_id in m.chunk.token_ids]
    assert token_ids == reference_greedy("llama-tied-gqa", PROMPT, 12)
    finish = messages[-1].finish
    assert finish.reason == common_pb2.FINISH_REASON_LENGTH
    assert finish.usage.prompt_tokens == len(PROMPT)
    assert finish.usage.completion_tokens == 12
    assert finish.queue_seconds >= 0
    assert finish.prefill_seconds > 0
    assert finish.decode_seconds > 0
    assert not any(m.chunk.logprobs for m in messages), "nobody asked for any"


async def test_a_stop_token_is_the_last_id(stub: Stub) -> None:
    """The reason is stop, and the id that stopped it is delivered and counted."""
    whole = reference_greedy("llama-tied-gqa", PROMPT, 12)
    stop = whole[4]
    expected = whole[: whole.index(stop) + 1]
    messages = await collect(stub, make_request(stop_token_ids=[stop]))
    assert [token_id for m in messages for token_id in m.chunk.token_ids] == expected
    assert messages[-1].finish.reason == common_pb2.FINISH_REASON_STOP
    assert messages[-1].finish.usage.completion_tokens == len(expected)


async def test_the_model_is_described(stub: Stub) -> None:
    """What a caller must know to send token ids."""
    model = await call_unary(stub.GetModel, inference_pb2.GetModelRequest())
    assert (model.name, model.architecture) == ("llama-tied-gqa", "LlamaForCausalLM")
    assert (model.context_length, model.vocab_size) == (512, VOCAB_SIZE)
    assert (model.dtype, model.device) == ("float32", "cpu")
    assert model.num_parameters > 0
    assert list(model.eos_token_ids) == []


async def test_the_load_counts_who_runs_and_who_waits_until_they_leave(
    make_slow_engine: Callable[..., Engine], no_tasks_left: None
) -> None:
    """A caller that cancels is out of the load, and its KV is free, within a second."""
    async with serving(lambda: make_slow_engine(max_num_seqs=2)) as served:
        stub = inference_pb2_grpc.InferenceServiceStub(served.channel)
        streams = [
            stub.Generate(make_request([number, *PROMPT], max_tokens=4000)) for number in range(3)
        ]
        for stream in streams:
            await stream.read()
        await wait_for_load(stub, running=2, waiting=1)
        load = await get_load(stub)
        assert 0 < load.kv_cache_usage < 1
        assert (load.max_num_seqs, load.kv_cache_capacity_tokens) == (2, LONG_CONTEXT)
        streams[2].cancel()  # the one that waits
        await wait_for_load(stub, running=2, waiting=0, limit=1)
        streams[0].cancel()
        await wait_for_load(stub, running=1, waiting=0, limit=1)
        streams[1].cancel()
        await wait_for_load(stub, running=0, waiting=0, limit=1)
        assert (await get_load(stub)).kv_cache_usage == 0


async def test_a_prefix_that_was_computed_is_counted_as_cached(stub: Stub) -> None:
    """The second time, whole blocks of the prompt come from the cache, and the tokens are equal."""
    prompt = PROMPT * 5
    first, second = [await collect(stub, make_request(prompt)) for _ in range(2)]
    assert first[-1].finish.usage.cached_tokens == 0
    assert second[-1].finish.usage.cached_tokens == 32
    ids = [[i for m in messages for i in m.chunk.token_ids] for messages in (first, second)]
    assert ids[0] == ids[1]
    assert (await get_load(stub)).num_cached_tokens >= 32


@pytest.mark.parametrize(
    ("request_", "kind", "message"),
    [
        (
            make_request(temperature=-0.5),
            ErrorKind.INVALID_REQUEST,
            "temperature must be between 0 and 100. Given: -0.5",
        ),
        (
            make_request(temperature=101.0),
            ErrorKind.INVALID_REQUEST,
            "temperature must be between 0 and 100. Given: 101",
        ),
        (
            make_request([1, VOCAB_SIZE]),
            ErrorKind.INVALID_REQUEST,
            f"between 0 and {VOCAB_SIZE - 1}. Given: {VOCAB_SIZE}",
        ),
        (
            make_request([2**32 - 1]),
            ErrorKind.INVALID_REQUEST,
            f"between 0 and {VOCAB_SIZE - 1}. Given: {2**32 - 1}",
        ),
        (make_request([]), ErrorKind.INVALID_REQUEST, "at least 1 token. Given: 0"),
        (make_request(resumed=9), ErrorKind.INVALID_REQUEST, "at least 1 token"),
        (make_request([1] * 513), ErrorKind.CONTEXT_TOO_LONG, "context of 512 tokens"),
        (
            make_request([1] * 500, max_tokens=13),
            ErrorKind.CONTEXT_TOO_LONG,
            "context of 512 tokens. Given: 513",
        ),
    ],
)
async def test_what_cannot_run_is_refused_with_its_kind(
    stub: Stub,
    request_: inference_pb2.InferenceServiceGenerateRequest,
    kind: ErrorKind,
    message: str,
) -> None:
    """The message names the limit and what was given; nothing of the request stays."""
    with pytest.raises(MeshError) as caught:
        await collect(stub, request_)
    assert caught.value.kind is kind
    assert message in caught.value.message
    await wait_for_load(stub, running=0, waiting=0)


async def test_a_full_line_is_overloaded_and_worth_another_try(
    make_slow_engine: Callable[..., Engine], no_tasks_left: None
) -> None:
    """Who comes when all places are taken is told when to come again."""
    async with serving(lambda: make_slow_engine(max_num_seqs=1, max_num_waiting=0)) as served:
        stub = inference_pb2_grpc.InferenceServiceStub(served.channel)
        async with open_stream(stub.Generate, make_request(max_tokens=4000)) as responses:
            await anext(responses)
            with pytest.raises(MeshError) as caught:
                await collect(stub, make_request())
            assert caught.value.kind is ErrorKind.OVERLOADED
            assert caught.value.retry_after == 1.0
        await wait_for_load(stub, running=0, waiting=0)
        assert len(await generate(stub)) == 12


async def test_a_deadline_ends_the_call_and_frees_the_engine(
    make_slow_engine: Callable[..., Engine], no_tasks_left: None
) -> None:
    """The caller gets DEADLINE, and nothing goes on without it."""
    async with serving(make_slow_engine) as served:
        stub = inference_pb2_grpc.InferenceServiceStub(served.channel)
        request = make_request(max_tokens=8000)
        with pytest.raises(MeshError) as caught:
            await collect(stub, request, timeout=0.2)
        assert caught.value.kind is ErrorKind.DEADLINE
        await wait_for_load(stub, running=0, waiting=0, limit=1)


async def test_a_seed_decides_the_tokens(stub: Stub) -> None:
    """Alone or beside others the same seed draws the same, and another seed draws another."""
    sampled = {"temperature": 1.0, "max_tokens": 24}
    alone = await generate(stub, seed=7, **sampled)
    again, _, other = await asyncio.gather(
        generate(stub, seed=7, **sampled),
        generate(stub, [8, 8], **sampled),
        generate(stub, seed=8, **sampled),
    )
    assert again == alone
    assert other != alone


async def test_a_resumed_stream_goes_on_where_the_other_replica_ended(stub: Stub) -> None:
    """The ids already generated are not sent again, and count as completion."""
    sampled = {"temperature": 1.0, "seed": 3}
    whole = await generate(stub, **sampled)
    messages = await collect(stub, make_request([*PROMPT, *whole[:5]], resumed=5, **sampled))
    assert [token_id for m in messages for token_id in m.chunk.token_ids] == whole[5:]
    usage = messages[-1].finish.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(PROMPT), 12)


async def test_logprobs_are_those_of_transformers(stub: Stub) -> None:
    """One for each token, with as many of the likeliest as were asked for."""
    messages = await collect(stub, make_request(max_tokens=5, num_logprobs=3))
    chunks = [m.chunk for m in messages[:-1]]
    assert all(len(chunk.logprobs) == len(chunk.token_ids) for chunk in chunks)
    logprobs = [logprob for chunk in chunks for logprob in chunk.logprobs]
    token_ids = [logprob.token_id for logprob in logprobs]
    assert token_ids == [token_id for chunk in chunks for token_id in chunk.token_ids]
    logits = reference_logits("llama-tied-gqa", [*PROMPT, *token_ids])
    for logprob, row in zip(logprobs, logits[len(PROMPT) - 1 : -1], strict=True):
        expected = row.log_softmax(-1)
        values, ids = expected.topk(3)
        assert [top.token_id for top in logprob.top] == ids.tolist()
        assert [top.logprob for top in logprob.top] == pytest.approx(values.tolist(), abs=1e-3)
        assert logprob.logprob == pytest.approx(float(expected[logprob.token_id]), abs=1e-3)


async def test_health_answers_during_a_long_prefill(
    make_slow_engine: Callable[..., Engine], no_tasks_left: None
) -> None:
    """Computing is done beside the event loop: half of the answers take less than 50 ms."""
    async with serving(make_slow_engine) as served:
        stub = inference_pb2_grpc.InferenceServiceStub(served.channel)
        health = health_pb2_grpc.HealthStub(served.channel)
        prompt = [number % VOCAB_SIZE for number in range(LONG_CONTEXT - 1)]
        took: list[float] = []
        async with open_stream(stub.Generate, make_request(prompt, max_tokens=1)) as responses:
            assert not (await anext(responses)).chunk.token_ids
            tokens = asyncio.ensure_future(anext(responses))
            while not tokens.done():
                begun = time.monotonic()
                answer = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE))
                took.append(time.monotonic() - begun)
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
                await asyncio.sleep(0.01)
            await tokens
            finish = (await anext(responses)).finish
        assert finish.prefill_seconds > 0.15, "the prefill was too short to show anything"
        assert len(took) >= 3
        assert statistics.median(took) < 0.05
