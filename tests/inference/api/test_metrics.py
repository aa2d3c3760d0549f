"""The engine's Prometheus metrics, over real gRPC, with a small real model."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

import pytest

from inference.api import metrics
from inference.api.service import InferenceService
from inference.engine.engine import Engine
from inference.engine.engine_thread import AsyncEngine
from inference.engine.fake_engine import FakeEngine
from inference.sampling.sampling_params import SamplingParams
from mesh.errors import MeshError
from mesh.v1 import inference_pb2_grpc
from tests.helpers import eventually, serve
from tests.inference.client import PROMPT, collect, make_request
from tests.samples import Change, value

if TYPE_CHECKING:
    Stub = inference_pb2_grpc.InferenceServiceAsyncStub

MODEL = "slow"


@pytest.fixture
async def watched(make_slow_engine: Callable[..., Engine]) -> AsyncIterator[Stub]:
    engine = AsyncEngine(lambda: make_slow_engine(max_num_seqs=2))
    await engine.start()
    metrics.watch(engine)
    try:
        async with serve(InferenceService(engine).servicer) as served:
            yield inference_pb2_grpc.InferenceServiceStub(served.channel)
    finally:
        await engine.stop()


async def test_a_sequence_is_counted_under_its_models_name(watched: Stub) -> None:
    """Tokens, the durations of the stages, and an interval for each token after the first."""
    change = Change()
    await collect(watched, make_request(PROMPT * 5, max_tokens=12))
    await collect(watched, make_request(PROMPT * 5, max_tokens=12))
    labels = {"model_name": MODEL, "engine": "0"}
    assert change.of("vllm:request_success_total", **labels, finished_reason="length") == 2
    assert change.of("vllm:prompt_tokens_total", **labels) == 80
    assert change.of("vllm:generation_tokens_total", **labels) == 24
    assert change.of("vllm:prefix_cache_queries_total", **labels) == 80
    assert change.of("vllm:prefix_cache_hits_total", **labels) == 32
    assert change.of("vllm:inter_token_latency_seconds_count", **labels) == 22
    for name in (
        "vllm:time_to_first_token_seconds",
        "vllm:request_time_per_output_token_seconds",
        "vllm:e2e_request_latency_seconds",
        "vllm:request_queue_time_seconds",
        "vllm:request_prefill_time_seconds",
        "vllm:request_decode_time_seconds",
        "vllm:request_prompt_tokens",
        "vllm:request_generation_tokens",
    ):
        assert change.of(f"{name}_count", **labels) == 2, name
    decode = change.of("vllm:request_decode_time_seconds_sum", **labels)
    intervals = change.of("vllm:inter_token_latency_seconds_sum", **labels)
    assert intervals == pytest.approx(decode, rel=0.3), "the intervals add up to the decode"
    steps = change.of("inference_step_seconds_count", **labels)
    assert steps == change.of("vllm:iteration_tokens_total_count", **labels) >= 24
    # A sequence's last token and the cached prompt tokens are not computed.
    assert change.of("vllm:iteration_tokens_total_sum", **labels) == 80 - 32 + 2 * 11


async def test_a_cancelled_sequence_is_counted_when_its_blocks_are_free(watched: Stub) -> None:
    """With the time that freeing took, and with the tokens generated until then."""
    change = Change()
    stream = watched.Generate(make_request(max_tokens=4000))
    while change.of("vllm:generation_tokens_total") < 3:
        await stream.read()
    assert value("vllm:num_requests_running", model_name=MODEL) == 1
    assert value("inference_num_requests_running") == 1
    assert value("vllm:kv_cache_usage_perc", model_name=MODEL) > 0
    stream.cancel()
    name = "inference_cancel_to_slot_free_seconds"
    await eventually(lambda: change.of(f"{name}_count", model_name=MODEL) == 1, "freed")
    assert value("vllm:kv_cache_usage_perc", model_name=MODEL) == 0
    assert 0 < change.of(f"{name}_sum", model_name=MODEL) < 5
    aborted = change.of("vllm:request_success_total", model_name=MODEL, finished_reason="abort")
    assert aborted == 1
    assert change.of("vllm:prompt_tokens_total", model_name=MODEL) == len(PROMPT)
    counted = change.of("vllm:generation_tokens_total", model_name=MODEL)
    assert counted == change.of("vllm:request_generation_tokens_sum", model_name=MODEL)


async def test_a_sequence_whose_last_output_is_not_read_is_counted(
    make_slow_engine: Callable[..., Engine],
) -> None:
    """Its client left when it had just ended: its tokens and its end are counted once."""
    engine = AsyncEngine(lambda: make_slow_engine(max_num_seqs=2))
    await engine.start()
    metrics.watch(engine)
    try:
        change = Change()
        outputs = engine.generate("unread", PROMPT, SamplingParams(max_tokens=3))
        await anext(outputs)  # accepted

        def has_ended() -> bool:
            load = engine.load()
            return load.num_running + load.num_waiting == 0

        await eventually(has_ended, "the sequence ended")
        await outputs.aclose()
        ended = {"model_name": MODEL, "finished_reason": "length"}
        await eventually(lambda: change.of("vllm:request_success_total", **ended) == 1, "counted")
    finally:
        await engine.stop()
    assert change.of("vllm:generation_tokens_total", model_name=MODEL) == 3
    assert change.of("vllm:request_generation_tokens_sum", model_name=MODEL) == 3
    assert change.of("inference_cancel_to_slot_free_seconds_count", model_name=MODEL) == 0


async def test_a_refusal_counts_as_no_sequence(watched: Stub) -> None:
    """A request that was not admitted is counted as an error of the RPC."""
    change = Change()
    with pytest.raises(MeshError, match="token ids must be between"):
        await collect(watched, make_request([10**6]))
    assert change.of("vllm:request_success_total") == 0
    assert change.of("mesh_errors_total", kind="invalid_request") == 1


async def test_the_cache_config_is_exported(watched: Stub) -> None:
    """Block size and number of blocks, which the Gateway API Inference Extension reads."""
    [info] = [
        sample
        for sample in metrics.CACHE_CONFIG.collect()[0].samples
        if sample.labels["model_name"] == MODEL
    ]
    assert info.value == 1
    assert info.labels["block_size"] == "16"
    assert int(info.labels["num_gpu_blocks"]) > 0


async def test_a_fake_engine_has_the_same_metrics() -> None:
    """So dashboards work in relay benchmarks."""
    engine = FakeEngine("fake", tokens_per_second=200)
    await engine.start()
    metrics.watch(engine)
    change = Change()
    try:
        async with serve(InferenceService(engine).servicer) as served:
            stub: Stub = inference_pb2_grpc.InferenceServiceStub(served.channel)  # type: ignore[assignment]
            await collect(stub, make_request(max_tokens=8))
            stream = stub.Generate(make_request(max_tokens=4000))
            await stream.read()
            stream.cancel()
            name = "inference_cancel_to_slot_free_seconds_count"
            await eventually(lambda: change.of(name, model_name="fake") == 1, "freed")
    finally:
        await engine.stop()
    assert change.of("vllm:inter_token_latency_seconds_count", model_name="fake") >= 7


async def test_an_endpoint_picker_finds_its_metrics(watched: Stub) -> None:
    """The names and labels that pickers of the Gateway API Inference Extension read."""
    labels = {"model_name": MODEL, "engine": "0"}
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
        assert value(f"vllm:{name}", **labels) == 0
    size = {"block_size": "16", "num_gpu_blocks": "768", "enable_prefix_caching": "true"}
    assert value("vllm:cache_config_info", **labels, **size) == 1
    adapters = {"max_lora": "0", "running_lora_adapters": "", "waiting_lora_adapters": ""}
    assert value("vllm:lora_requests_info", **labels, **adapters) == pytest.approx(time.time(), 1)
