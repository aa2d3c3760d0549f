"""mesh.v1.InferenceService over real gRPC, with a small real model."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from inference.api.service import SERVICE
from inference.engine.engine import Engine
from mesh.errors import ErrorKind, MeshError
from mesh.rpc.channel import call_unary, open_stream
from mesh.v1 import common_pb2, inference_pb2, inference_pb2_grpc
from tests.inference.client import (
    PROMPT,
    collect,
    generate,
    get_load,
    make_request,
    serving,
    wait_for_load,
)
from tests.inference.conftest import LONG_CONTEXT
from tests.inference.model.families import VOCAB_SIZE, reference_greedy, reference_logits
from tests.inference.model.lora.adapters import write_adapter

if TYPE_CHECKING:
    Stub = inference_pb2_grpc.InferenceServiceAsyncStub


async def test_a_stream_is_an_empty_message_then_tokens_then_one_finish(stub: Stub) -> None:
    """The tokens equal those of transformers; the finish has their number and the durations."""
    messages = await collect(stub, make_request())
    assert [m.HasField("finish") for m in messages] == [False] * (len(messages) - 1) + [True]
    assert len(messages[0].chunk.token_ids) == 0
    assert all(m.chunk.token_ids for m in messages[1:]), "only the first message may be empty"
    token_ids = [token_id for m in messages for token_id in m.chunk.token_ids]
    assert token_ids == reference_greedy("llama-tied-gqa", PROMPT, 12)
    finish = messages[-1].finish
    assert finish.reason == common_pb2.FINISH_REASON_LENGTH
    assert finish.usage.prompt_tokens == len(PROMPT)
    assert finish.usage.completion_tokens == 12
    assert finish.queue_seconds >= 0
    assert finish.prefill_seconds > 0
    assert finish.decode_seconds > 0
    assert not any(m.chunk.logprobs for m in messages), "no logprobs were requested"


async def test_a_stop_token_is_the_last_id(stub: Stub) -> None:
    """The reason is stop; the stop token is delivered and counted."""
    whole = reference_greedy("llama-tied-gqa", PROMPT, 12)
    stop = whole[4]
    expected = whole[: whole.index(stop) + 1]
    messages = await collect(stub, make_request(stop_token_ids=[stop]))
    assert [token_id for m in messages for token_id in m.chunk.token_ids] == expected
    assert messages[-1].finish.reason == common_pb2.FINISH_REASON_STOP
    assert messages[-1].finish.usage.completion_tokens == len(expected)


async def test_the_model_is_described(stub: Stub) -> None:
    """GetModel returns the properties that a caller needs."""
    model = await call_unary(stub.GetModel, inference_pb2.GetModelRequest())
    assert (model.name, model.architecture) == ("llama-tied-gqa", "LlamaForCausalLM")
    assert (model.context_length, model.vocab_size) == (512, VOCAB_SIZE)
    assert (model.dtype, model.device) == ("float32", "cpu")
    assert model.num_parameters > 0
    assert list(model.eos_token_ids) == []


async def test_the_load_counts_running_and_waiting_requests(
    make_slow_engine: Callable[..., Engine], no_tasks_left: None
) -> None:
    """Within a second, a cancelled request is not in the load, and its KV cache is free."""
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
        streams[2].cancel()  # the waiting request
        await wait_for_load(stub, running=2, waiting=0, limit=1)
        streams[0].cancel()
        await wait_for_load(stub, running=1, waiting=0, limit=1)
        streams[1].cancel()
        await wait_for_load(stub, running=0, waiting=0, limit=1)
        assert (await get_load(stub)).kv_cache_usage == 0


async def test_a_repeated_prompt_comes_from_the_prefix_cache(stub: Stub) -> None:
    """The second request's full blocks are cached, and its tokens are the same."""
    prompt = PROMPT * 5
    first, second = [await collect(stub, make_request(prompt)) for _ in range(2)]
    assert first[-1].finish.usage.cached_tokens == 0
    assert second[-1].finish.usage.cached_tokens == 32
    ids = [[i for m in messages for i in m.chunk.token_ids] for messages in (first, second)]
    assert ids[0] == ids[1]
    assert (await get_load(stub)).num_cached_tokens >= 32


async def test_a_seed_of_64_bits_can_be_exported(
    stub: Stub, spans: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    """OTLP's integers are signed; the attribute is the signed seed that gives the same tokens."""
    await generate(stub, seed=2**63, temperature=1.0)
    finished = spans.get_finished_spans()
    name = "gen_ai.request.seed"
    assert [s.attributes[name] for s in finished if name in (s.attributes or {})] == [-(2**63)]
    encode_spans(finished)
    assert "Failed to encode" not in caplog.text


async def test_a_seed_decides_the_tokens(stub: Stub) -> None:
    """The same seed gives the same tokens, alone or in a batch; another seed gives others."""
    sampled = {"temperature": 1.0, "max_tokens": 24}
    alone = await generate(stub, seed=7, **sampled)
    again, _, other = await asyncio.gather(
        generate(stub, seed=7, **sampled),
        generate(stub, [8, 8], **sampled),
        generate(stub, seed=8, **sampled),
    )
    assert again == alone
    assert other != alone


async def test_a_resumed_stream_continues_where_the_other_replica_ended(stub: Stub) -> None:
    """The ids of the first attempt are not sent again, and count as completion."""
    sampled = {"temperature": 1.0, "seed": 3}
    whole = await generate(stub, **sampled)
    messages = await collect(stub, make_request([*PROMPT, *whole[:5]], resumed=5, **sampled))
    assert [token_id for m in messages for token_id in m.chunk.token_ids] == whole[5:]
    usage = messages[-1].finish.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(PROMPT), 12)


async def test_logprobs_are_those_of_transformers(stub: Stub) -> None:
    """One for each token, with the requested number of alternatives."""
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
    """The engine does not block the event loop: half of the answers take less than 50 ms."""
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
            finish = (await tokens).finish
        assert finish.prefill_seconds > 0.15, "the prefill was too short to show anything"
        assert len(took) >= 3
        assert statistics.median(took) < 0.05


async def test_requests_use_adapters_by_digest_or_name(
    make_engine: Callable[..., Engine], model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """Both give the adapter's tokens; an unknown name is NOT_FOUND, and the list has digests."""
    path = str(write_adapter(model_folder("llama-tied-gqa"), tmp_path / "a", 0))
    async with serving(lambda: make_engine(allow_runtime_lora=True, max_loras=2)) as served:
        stub: Stub = inference_pb2_grpc.InferenceServiceStub(served.channel)  # type: ignore[assignment]
        base = await generate(stub)
        load = inference_pb2.LoadAdapterRequest(name="a", path=path)
        digest = (await call_unary(stub.LoadAdapter, load)).model_sha256
        model = await call_unary(stub.GetModel, inference_pb2.GetModelRequest())
        assert [(each.name, each.model_sha256) for each in model.adapters] == [("a", digest)]
        assert model.allows_loading_adapters
        found = []
        for fields in ({"model_sha256": digest}, {"adapter": "a"}):
            request = make_request()
            request.MergeFrom(inference_pb2.InferenceServiceGenerateRequest(**fields))
            messages = await collect(stub, request)
            found.append([each for message in messages for each in message.chunk.token_ids])
        assert found[0] == found[1] != base
        assert await generate(stub) == base
        unload = inference_pb2.UnloadAdapterRequest(name="a")
        await call_unary(stub.UnloadAdapter, unload)
        with pytest.raises(MeshError) as gone:
            await collect(stub, request)
        assert gone.value.kind is ErrorKind.MODEL_NOT_FOUND
        with pytest.raises(MeshError) as unknown:
            await call_unary(stub.UnloadAdapter, unload)
        assert unknown.value.kind is ErrorKind.MODEL_NOT_FOUND
