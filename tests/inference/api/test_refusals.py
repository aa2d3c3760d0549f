"""The errors for requests that the inference service cannot run, or cannot finish."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from inference.engine.engine import Engine
from mesh.errors import ErrorKind, MeshError
from mesh.rpc.channel import open_stream
from mesh.v1 import inference_pb2, inference_pb2_grpc
from tests.inference.client import collect, generate, make_request, serving, wait_for_load
from tests.inference.model.families import VOCAB_SIZE

if TYPE_CHECKING:
    Stub = inference_pb2_grpc.InferenceServiceAsyncStub


@pytest.mark.parametrize(
    ("request_", "kind", "message"),
    [
        (
            make_request(temperature=-0.5),
            ErrorKind.INVALID_REQUEST,
            "temperature must be between 0 and 2, given -0.5",
        ),
        (
            make_request(temperature=101.0),
            ErrorKind.INVALID_REQUEST,
            "temperature must be between 0 and 2, given 101",
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
        (make_request([1] * 513), ErrorKind.CONTEXT_TOO_LONG, "context length is 512 tokens"),
        (
            make_request([1] * 500, max_tokens=13),
            ErrorKind.CONTEXT_TOO_LONG,
            "requested 513 tokens (500 in the prompt, 13 in the completion)",
        ),
    ],
)
async def test_a_request_that_cannot_run_is_refused_with_its_kind(
    stub: Stub,
    request_: inference_pb2.InferenceServiceGenerateRequest,
    kind: ErrorKind,
    message: str,
) -> None:
    """The message has the limit and the given value; the engine keeps nothing."""
    with pytest.raises(MeshError) as caught:
        await collect(stub, request_)
    assert caught.value.kind is kind
    assert message in caught.value.message
    await wait_for_load(stub, running=0, waiting=0)


async def test_a_full_queue_is_overloaded_with_retry_after(
    make_slow_engine: Callable[..., Engine], no_tasks_left: None
) -> None:
    """The refusal says after how many seconds to retry."""
    async with serving(lambda: make_slow_engine(max_num_seqs=1, max_num_waiting=0)) as served:
        stub = inference_pb2_grpc.InferenceServiceStub(served.channel)
        async with open_stream(stub.Generate, make_request(max_tokens=4000)) as responses:
            await anext(responses)
            with pytest.raises(MeshError) as caught:
                await collect(stub, make_request())
            assert caught.value.kind is ErrorKind.OVERLOADED
            assert 0 < (caught.value.retry_after or 0) <= 30
        await wait_for_load(stub, running=0, waiting=0)
        assert len(await generate(stub)) == 12


async def test_a_deadline_ends_the_call_and_frees_the_engine(
    make_slow_engine: Callable[..., Engine], no_tasks_left: None
) -> None:
    """The caller gets DEADLINE, and the sequence is aborted."""
    async with serving(make_slow_engine) as served:
        stub = inference_pb2_grpc.InferenceServiceStub(served.channel)
        request = make_request(max_tokens=8000)
        with pytest.raises(MeshError) as caught:
            await collect(stub, request, timeout=0.2)
        assert caught.value.kind is ErrorKind.DEADLINE
        await wait_for_load(stub, running=0, waiting=0)
