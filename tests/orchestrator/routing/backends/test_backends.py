"""An engine answers the same by every protocol."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

import grpc.aio
import pytest
from starlette.responses import JSONResponse

from mesh.errors import ErrorKind, MeshError
from mesh.protocol.constraints import ConstraintForm, OutputConstraint, SchemaRule
from mesh.protocol.finish import FinishReason, GenerationFinish
from mesh.protocol.logprobs import TokenLogprob
from mesh.protocol.sampling_params import SamplingParams
from mesh.protocol.tokens import TokenChunk
from mesh.rpc.channel import open_channel
from mesh.rpc.server import Servicer
from mesh.v1 import tokenizer_pb2_grpc
from orchestrator.generation import ModelInfo
from orchestrator.routing.backends import connection as connection_module
from orchestrator.routing.backends.backend import Backend, GenerateCall, TokenStream
from orchestrator.routing.backends.connection import EngineConnection, identify
from orchestrator.routing.backends.target import EngineProtocol, EngineTarget
from orchestrator.routing.backends.vllm_grpc import client
from orchestrator.routing.backends.vllm_grpc.client import VllmBackend
from orchestrator.routing.backends.vllm_http.client import VllmHttpBackend
from orchestrator.routing.backends.vllm_http.response import MAX_ERROR_BYTES
from orchestrator.routing.backends.weir import WeirBackend
from tests.chaos.proxy import Proxy
from tests.helpers import eventually, serve
from tests.orchestrator.fakes import FakeTokenizer
from tests.orchestrator.routing.backends.conftest import Backends

pytestmark = pytest.mark.timeout(60)

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
SCHEMA = '{"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}'
GRAMMAR = OutputConstraint(
    ConstraintForm.GRAMMAR, 'start: "<" value ">"', (SchemaRule("value", SCHEMA, "tools[0]"),)
)


async def collected(backend: Backend, call: GenerateCall) -> TokenChunk:
    """All chunks of a generation as one."""
    token_ids: list[int] = []
    logprobs: list[Any] = []
    prompt_logprobs: list[Any] = []
    finish: GenerationFinish | None = None
    async with backend.generate(call) as stream:
        async for chunk in stream:
            assert finish is None, "a chunk after the finish"
            token_ids += chunk.token_ids
            logprobs += chunk.logprobs
            prompt_logprobs += chunk.prompt_logprobs
            finish = chunk.finish
    return TokenChunk(token_ids, logprobs, prompt_logprobs, finish)


def _values(logprobs: Sequence[TokenLogprob]) -> list[tuple[int, float]]:
    """Ids and values; JSON has more digits than a float32."""
    return [(each.token_id, round(each.logprob, 4)) for each in logprobs]


@pytest.mark.parametrize(
    ("sampling", "num_resumed"),
    [
        ({}, 0),
        ({"num_logprobs": 0, "num_prompt_logprobs": 0}, 0),
        ({"logit_bias": {9: 100.0}, "stop_token_ids": frozenset({9})}, 0),
        ({"logit_bias": {9: 100.0}, "stop_token_ids": frozenset({9}), "min_tokens": 4}, 0),
        ({"temperature": 1.0, "seed": 7, "top_k": 20, "top_p": 0.9, "min_p": 0.01}, 0),
        ({"repetition_penalty": 1.5, "presence_penalty": 0.5, "frequency_penalty": 0.5}, 0),
        ({"constraint": OutputConstraint(ConstraintForm.JSON_SCHEMA, SCHEMA)}, 0),
        ({"constraint": OutputConstraint(ConstraintForm.JSON_OBJECT)}, 0),
        ({"constraint": OutputConstraint(ConstraintForm.REGEX, "[ab]{4}"), "ignore_eos": True}, 0),
        ({"min_tokens": 8}, 3),
        ({"num_logprobs": 0}, 3),
        ({"repetition_penalty": 1.5}, 3),
    ],
)
async def test_all_protocols_generate_the_same(
    backends: Backends, sampling: dict[str, Any], num_resumed: int
) -> None:
    """Tokens, log probabilities, finish and usage; resumed tokens count as completion."""
    params = SamplingParams(**{"temperature": 0.0, "max_tokens": 12, **sampling})
    call = GenerateCall(PROMPT, params, num_resumed)
    own = await collected(backends.weir, call)
    assert own.finish is not None
    assert own.finish.usage.completion_tokens == num_resumed + len(own.token_ids)
    for backend in (backends.vllm, backends.http):
        other = await collected(backend, call)
        assert other.token_ids == own.token_ids
        assert _values(other.logprobs) == _values(own.logprobs)
        assert _values(other.prompt_logprobs) == _values(own.prompt_logprobs)
        assert other.finish is not None
        assert other.finish.reason == own.finish.reason
        assert other.finish.usage[:2] == own.finish.usage[:2]


async def test_a_grammar_with_schema_rules(backends: Backends) -> None:
    """Rules of JSON schemas are part of the grammar's text."""
    params = SamplingParams(temperature=0.0, max_tokens=40, constraint=GRAMMAR)
    own = await collected(backends.weir, GenerateCall(PROMPT, params))
    other = await collected(backends.vllm, GenerateCall(PROMPT, params))
    assert len(own.token_ids) > 3
    assert other.token_ids[:2] == own.token_ids[:2]  # before the first white space
    assert other.finish is not None


@pytest.mark.parametrize("wanted", [1, 3, 20])
async def test_the_most_likely_tokens_are_those_of_the_engine(
    backends: Backends, wanted: int
) -> None:
    """Most likely first, as many as requested, although vLLM counts the sampled one."""
    params = SamplingParams(temperature=2.0, seed=3, max_tokens=6, num_logprobs=wanted)
    own = await collected(backends.weir, GenerateCall(PROMPT, params))
    for backend in (backends.vllm, backends.http):
        other = await collected(backend, GenerateCall(PROMPT, params))
        assert other.token_ids == own.token_ids
        for one, two in zip(own.logprobs, other.logprobs, strict=True):
            values = [value for _, value in two.top]
            assert len(values) == wanted
            assert values == sorted(values, reverse=True)
            assert two.top[0][0] == one.top[0][0]


async def test_model_load_and_vectors(backends: Backends) -> None:
    """Name, context, end tokens and vocabulary are the same; vLLM's protocol has no digest."""
    own, other = await backends.weir.model(), await backends.vllm.model()
    assert own.model_sha256
    assert own.embedding_length > 0
    assert other == own._replace(model_sha256="", embedding_length=0)
    assert await backends.http.model() == ModelInfo(own.name, own.context_length)
    for backend in (backends.weir, backends.vllm, backends.http):
        assert await backend.load() == (0, 0, 0.0)
    inputs = [[1, 2, 3], [4], [5] * 9]
    vectors = await backends.weir.embed(inputs)
    for backend in (backends.vllm, backends.http):
        for one, two in zip(await backend.embed(inputs), vectors, strict=True):
            assert list(one) == pytest.approx(list(two), abs=1e-5)


LONG = SamplingParams(temperature=0.0, max_tokens=100, ignore_eos=True)


async def test_leaving_a_stream_frees_the_slot(backends: Backends) -> None:
    """The load shows a running request, and then none."""
    for backend in (backends.vllm, backends.http):
        async with backend.generate(GenerateCall(PROMPT, LONG)) as stream:
            await anext(stream)
            assert (await backend.load()).num_running == 1
        await eventually(lambda: backends.engine.load().num_running == 0, "the slot is free", 1.0)
        assert (await backend.load()).num_running == 0


@pytest.mark.parametrize(
    ("prompt", "sampling", "kind", "param"),
    [
        ([1] * 5000, {}, ErrorKind.CONTEXT_TOO_LONG, None),
        ([10**6], {}, ErrorKind.INVALID_REQUEST, None),
        (PROMPT, {"logit_bias": {10**6: 1.0}}, ErrorKind.INVALID_REQUEST, "logit_bias"),
        (
            PROMPT,
            {"constraint": OutputConstraint(ConstraintForm.REGEX, "(")},
            ErrorKind.INVALID_REQUEST,
            "constraint.regex",
        ),
    ],
)
async def test_refusals(
    backends: Backends,
    prompt: list[int],
    sampling: dict[str, Any],
    kind: ErrorKind,
    param: str | None,
) -> None:
    """Kind and field are those of Weir's protocol."""
    call = GenerateCall(prompt, SamplingParams(**{"max_tokens": 4, **sampling}))
    with pytest.raises(MeshError) as own:
        await collected(backends.weir, call)
    with pytest.raises(MeshError) as other:
        await collected(backends.vllm, call)
    assert own.value.kind is other.value.kind is kind
    assert other.value.is_reported
    if param is not None:
        assert other.value.param == own.value.param == param


async def test_a_cancelled_stream_raises(backends: Backends) -> None:
    """`cancel` is how an operator ends a request."""
    for backend in (backends.vllm, backends.http):
        async with backend.generate(GenerateCall(PROMPT, LONG)) as stream:
            await anext(stream)
            reading = asyncio.create_task(_read_to_the_end(stream))
            await asyncio.sleep(0)
            stream.cancel()
            stream.cancel()  # by another operator
            with pytest.raises(MeshError) as caught:
                await reading
        assert caught.value.kind is ErrorKind.CANCELLED
        await eventually(lambda: backends.engine.load().num_running == 0, "the slot is free", 1.0)


async def _read_to_the_end(stream: TokenStream) -> None:
    async for _ in stream:
        pass


async def test_health_follows_the_engine(backends: Backends) -> None:
    """A change is seen at once if a check is demanded."""
    for backend in (backends.vllm, backends.http):
        await backends.served.server.set_ready(True)
        backends.http_server.healthy = True
        states = backend.health()
        assert await anext(states) is True
        await backends.served.server.set_ready(False)
        backends.http_server.healthy = False
        backend.recheck()
        assert await anext(states) is False
        await states.aclose()


async def test_the_protocol_is_found_by_the_health_service(backends: Backends) -> None:
    """Weir's own is preferred; an address without an engine is an error."""
    assert await identify(backends.served.channel) is EngineProtocol.WEIR
    register = tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server
    async with serve(Servicer("mesh.v1.TokenizerService", register, FakeTokenizer())) as other:
        with pytest.raises(MeshError, match="knows none of") as caught:
            await identify(other.channel)
    assert caught.value.kind is ErrorKind.UNIMPLEMENTED


async def test_an_engine_that_does_not_answer_is_logged_with_its_address(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As while it loads its model; its protocol is asked for again later."""
    monkeypatch.setattr(connection_module, "IDENTIFY_SECONDS", 0.01)
    caplog.set_level("INFO")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        connection = EngineConnection(address, EngineTarget(address))
        try:
            with pytest.raises(MeshError, match="the engine does not answer") as caught:
                await connection.backend()
        finally:
            await connection.close()
    assert caught.value.kind is ErrorKind.UNAVAILABLE
    logged = [(each.message, getattr(each, "address", "")) for each in caplog.records]
    assert logged == [("engine does not answer", address)]


async def test_a_target_fixes_the_protocol(backends: Backends) -> None:
    """`vllm+grpc://` is used although the engine serves both."""
    for protocol, kind in ((None, WeirBackend), (EngineProtocol.VLLM_GRPC, VllmBackend)):
        target = EngineTarget(backends.served.address, protocol)
        connection = EngineConnection(backends.served.address, target)
        backend = await connection.backend()
        assert isinstance(backend, kind)
        finished = await collected(backend, GenerateCall(PROMPT, SamplingParams(max_tokens=2)))
        assert finished.finish is not None
        assert finished.finish.reason is FinishReason.LENGTH
        await connection.close()


async def test_by_http_a_target_names_the_host(backends: Backends) -> None:
    """The address is one of several; the `Host` header is the target's."""
    address = backends.http.address
    target = EngineTarget("vllm.models.svc:8000", EngineProtocol.VLLM_HTTP)
    connection = EngineConnection(address, target)
    backend = await connection.backend()
    await backend.model()
    await collected(backend, GenerateCall(PROMPT, SamplingParams(max_tokens=2)))
    await connection.close()
    assert backends.http_server.headers[-1]["host"] == "vllm.models.svc:8000"


BAD_REQUEST = {"message": "The grammar is bad", "param": None}


@pytest.mark.parametrize(
    ("status", "headers", "error", "kind", "param", "retry_after"),
    [
        (400, {}, BAD_REQUEST, ErrorKind.INVALID_REQUEST, "constraint.regex", None),
        (
            400,
            {},
            {"message": "maximum context length is 9 tokens", "param": "input_tokens"},
            ErrorKind.CONTEXT_TOO_LONG,
            "prompt",
            None,
        ),
        (
            400,
            {},
            {"message": "x", "param": "logit_bias"},
            ErrorKind.INVALID_REQUEST,
            "logit_bias",
            None,
        ),
        (429, {"retry-after": "7"}, {}, ErrorKind.OVERLOADED, None, 7.0),
        (503, {}, {"message": "The engine is currently busy"}, ErrorKind.OVERLOADED, None, 1.0),
        (503, {}, {}, ErrorKind.UNAVAILABLE, None, None),
        (401, {}, {"error": "Unauthorized"}, ErrorKind.UNAVAILABLE, None, None),
        (500, {}, {"message": "division by zero"}, ErrorKind.INTERNAL, None, None),
        (500, {}, {"message": "EngineCore encountered"}, ErrorKind.UNAVAILABLE, None, None),
    ],
)
async def test_http_statuses(
    backends: Backends,
    status: int,
    headers: dict[str, str],
    error: dict[str, Any],
    kind: ErrorKind,
    param: str | None,
    retry_after: float | None,
) -> None:
    """As the errors of the gRPC server."""
    backends.http_server.refusal = JSONResponse({"error": error}, status, headers)
    constraint = OutputConstraint(ConstraintForm.REGEX, "a")
    call = GenerateCall(PROMPT, SamplingParams(max_tokens=2, constraint=constraint))
    with pytest.raises(MeshError) as caught:
        await collected(backends.http, call)
    raised = caught.value
    assert (raised.kind, raised.param, raised.retry_after) == (kind, param, retry_after)


async def test_an_engine_for_embeddings_refuses_text(backends: Backends) -> None:
    """It serves no path for completions: the client's mistake, which no replica is lost for."""
    backends.http_server.refusal = JSONResponse({"detail": "Not Found"}, 404)
    with pytest.raises(MeshError, match="does not generate text") as caught:
        await collected(backends.http, GenerateCall(PROMPT, LONG))
    assert (caught.value.kind, caught.value.param) == (ErrorKind.INVALID_REQUEST, "model")
    backends.http_server.refusal = JSONResponse({"error": {"message": "no such model"}}, 404)
    with pytest.raises(MeshError, match="status 404") as caught:
        await collected(backends.http, GenerateCall(PROMPT, LONG))
    assert caught.value.kind is ErrorKind.UNAVAILABLE


async def test_a_long_http_error_is_not_read(backends: Backends) -> None:
    """Its status counts alone."""
    error = {"message": "The engine is currently busy" + "!" * MAX_ERROR_BYTES}
    backends.http_server.refusal = JSONResponse({"error": error}, 503)
    with pytest.raises(MeshError, match="answered with status 503") as caught:
        await collected(backends.http, GenerateCall(PROMPT, LONG))
    assert caught.value.kind is ErrorKind.UNAVAILABLE


async def test_files_that_are_late_are_requested_again(
    backends: Backends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy engine would otherwise serve without its end tokens and vocabulary until restarted."""

    async def late(_: object) -> dict[str, bytes]:
        raise MeshError(ErrorKind.DEADLINE, "late")

    monkeypatch.setattr(client, "fetch_tokenizer", late)
    with pytest.raises(MeshError, match="late"):
        await backends.vllm.model()
    monkeypatch.undo()
    assert (await backends.vllm.model()).vocabulary_sha256


async def test_files_are_fetched_once_for_each_connection(
    backends: Backends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that is found again after a failed call is asked for its model, not its files.

    Another process at its address may have others.
    """
    fetched: list[object] = []
    fetch = client.fetch_tokenizer

    async def counting(channel: grpc.aio.Channel) -> Mapping[str, bytes]:
        fetched.append(channel)
        return await fetch(channel)

    monkeypatch.setattr(client, "fetch_tokenizer", counting)
    async with Proxy().running() as proxy, AsyncExitStack() as stack:
        proxy.target = backends.served.address
        channel = open_channel(proxy.address)
        stack.push_async_callback(channel.close)
        backend = VllmBackend(channel)
        stack.push_async_callback(backend.close)
        models = [await backend.model() for _ in range(3)]
        assert models[0].vocabulary_sha256
        assert models == [models[0]] * 3
        assert len(fetched) == 1
        connected = backend._connected
        assert connected is not None
        proxy.reset()
        await eventually(connected.done, "the connection is lost")
        await channel.channel_ready()
        assert await backend.model() == models[0]
        assert len(fetched) == 2


async def test_a_cut_http_stream_is_a_lost_engine(backends: Backends) -> None:
    """A connection that ends within a stream, and one that cannot be opened."""
    backends.http_server.cut_after = 2
    params = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
    with pytest.raises(MeshError) as caught:
        await collected(backends.http, GenerateCall(PROMPT, params))
    assert caught.value.kind is ErrorKind.UNAVAILABLE
    assert not caught.value.is_reported
    nowhere = VllmHttpBackend("127.0.0.1:1", "nowhere")
    with pytest.raises(MeshError) as caught:
        await nowhere.check(1.0)
    assert caught.value.kind is ErrorKind.UNAVAILABLE
    await nowhere.close()
