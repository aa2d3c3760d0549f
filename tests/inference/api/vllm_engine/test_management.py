"""VllmEngine's other calls: what the model and the load are, the tokenizer, embeddings."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import grpc
import grpc.aio
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from smg_grpc_proto.generated import (
    common_pb2,
    sglang_scheduler_pb2,
    sglang_scheduler_pb2_grpc,
    vllm_engine_pb2_grpc,
)
from smg_grpc_proto.generated import vllm_engine_pb2 as pb

from inference.api.vllm_engine.model_files import ModelFiles
from inference.api.vllm_engine.service import ARCHIVE_PART_BYTES, SERVICE, VllmEngineService
from inference.engine.fake_engine import FakeEngine
from tests.helpers import eventually, serve
from tests.inference.api.vllm_engine.conftest import BLOCK_SIZE, NUM_BLOCKS, Engines
from tests.inference.api.vllm_engine.test_generate import PROMPT, request_of


async def test_the_model_and_the_server_describe_themselves(engines: Engines, folder: Path) -> None:
    """Everything that a router needs in order to send token ids."""
    model = await engines.vllm.GetModelInfo(pb.GetModelInfoRequest(), timeout=5)
    assert model.served_model_name == "spelling"
    assert (model.model_path, model.tokenizer_path) == (str(folder), str(folder))
    assert (model.max_context_length, model.max_req_input_len, model.vocab_size) == (
        4096,
        4095,
        420,
    )
    assert (model.model_type, list(model.architectures)) == ("llama", ["LlamaForCausalLM"])
    assert (list(model.eos_token_ids), model.is_generation) == ([1, 2], True)
    server = await engines.vllm.GetServerInfo(pb.GetServerInfoRequest(), timeout=5)
    assert (server.data_parallel_size, server.block_size, server.max_num_seqs) == (1, BLOCK_SIZE, 4)
    assert server.uptime_seconds > 0


async def test_health_by_its_own_call_and_by_the_standard_one(engines: Engines) -> None:
    """Both names of the health service, and UNIMPLEMENTED for a service of another engine."""
    health = await engines.vllm.HealthCheck(pb.HealthCheckRequest(), timeout=5)
    assert health.healthy
    standard = health_pb2_grpc.HealthStub(engines.served.channel)
    for name in ("", SERVICE, "mesh.v1.InferenceService"):
        status = await standard.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
        assert status.status == health_pb2.HealthCheckResponse.SERVING
    other = sglang_scheduler_pb2_grpc.SglangSchedulerStub(engines.served.channel)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await other.HealthCheck(sglang_scheduler_pb2.HealthCheckRequest(), timeout=5)
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_loads_are_those_of_the_engine(engines: Engines) -> None:
    """Running sequences, and the size of the KV cache."""
    call = engines.vllm.Generate(request_of(max_tokens=3000, n=2), timeout=20)
    await call.read()
    await eventually(lambda: engines.engine.load().num_running == 2, "both sequences run")
    response = await engines.vllm.GetLoads(pb.GetLoadsRequest(), timeout=5)
    (load,) = response.loads
    assert (load.num_running_reqs, load.num_waiting_reqs, load.num_total_reqs) == (2, 0, 2)
    assert (load.max_total_num_tokens, load.max_running_requests) == (NUM_BLOCKS * BLOCK_SIZE, 4)
    assert 0 < load.token_usage < 1
    call.cancel()


async def test_the_tokenizer_is_a_zip_in_parts(engines: Engines, folder: Path) -> None:
    """Parts of 64 KiB; the SHA-256 of all of it is on the last one; equal at each call."""
    parts = [each async for each in engines.vllm.GetTokenizer(common_pb2.GetTokenizerRequest())]
    data = b"".join(part.data for part in parts)
    assert all(len(part.data) == ARCHIVE_PART_BYTES for part in parts[:-1])
    assert [part.sha256 for part in parts[:-1]] == [""] * (len(parts) - 1)
    assert parts[-1].sha256 == hashlib.sha256(data).hexdigest()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert set(archive.namelist()) >= {"tokenizer.json", "config.json"}
        assert archive.read("tokenizer.json") == (folder / "tokenizer.json").read_bytes()
    again = await ModelFiles(folder).archive()
    assert again.sha256 == parts[-1].sha256


async def test_an_input_is_embedded(engines: Engines) -> None:
    """A vector of length 1 and the number of tokens; an invalid input names the field."""
    given = await engines.vllm.Embed(
        pb.EmbedRequest(tokenized=pb.TokenizedInput(input_ids=PROMPT)), timeout=10
    )
    assert (given.prompt_tokens, given.embedding_dim) == (len(PROMPT), len(given.embedding))
    assert sum(value * value for value in given.embedding) == pytest.approx(1, abs=1e-4)
    with pytest.raises(grpc.aio.AioRpcError, match=r"tokenized\.input_ids") as error:
        await engines.vllm.Embed(pb.EmbedRequest(), timeout=10)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_model_without_a_tokenizer_serves_token_ids_only(no_tasks_left: None) -> None:
    """Texts, stop strings and GetTokenizer are refused by name; KV events need a prefix cache."""
    engine = FakeEngine("fake")
    await engine.start()
    service = VllmEngineService(engine, ModelFiles(None))
    try:
        async with serve(service.servicer) as served:
            stub = vllm_engine_pb2_grpc.VllmEngineStub(served.channel)
            assert [each async for each in stub.Generate(request_of(), timeout=5)]
            calls: list[tuple[str, Message, str]] = [
                ("Generate", request_of("a text"), "text needs a tokenizer"),
                ("Generate", request_of(stop=["x"]), "sampling_params.stop needs a tokenizer"),
                ("GetTokenizer", common_pb2.GetTokenizerRequest(), "GetTokenizer needs a token"),
                ("SubscribeKvEvents", common_pb2.SubscribeKvEventsRequest(), "the engine has no"),
            ]
            for method, request, message in calls:
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    [each async for each in getattr(stub, method)(request, timeout=5)]
                assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
                assert str(error.value.details()).startswith(message)
            for method in ("FlushCache", "StartProfile", "StopProfile"):
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    await getattr(stub, method)(getattr(common_pb2, f"{method}Request")())
                assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
    finally:
        await engine.stop()
