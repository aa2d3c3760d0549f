"""Embeddings: equal to transformers', concurrent with generation, with a bounded queue."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import grpc
import pytest
import torch

from inference.embedding.embedder import MeanPoolingEmbedder
from inference.embedding.queue import MAX_INPUTS, MAX_WAITING, EmbeddingQueue
from inference.engine.engine import Engine
from inference.engine.errors import Overloaded
from inference.engine.fake_engine import FakeEngine
from mesh.errors import ErrorKind, MeshError
from mesh.rpc.channel import call_unary
from mesh.v1 import common_pb2, inference_pb2, inference_pb2_grpc
from tests.helpers import eventually
from tests.inference.client import generate
from tests.inference.model.families import VOCAB_SIZE, reference
from tests.inference.model.test_parity import prompts

if TYPE_CHECKING:
    Stub = inference_pb2_grpc.InferenceServiceAsyncStub


@torch.inference_mode()
def reference_embedding(family: str, token_ids: list[int]) -> torch.Tensor:
    """[hidden_size]: the mean of the last hidden states, scaled to length 1."""
    model = reference(family).model
    hidden = model(torch.tensor([token_ids])).last_hidden_state[0]
    return torch.nn.functional.normalize(hidden.mean(0), dim=-1)


def request(*inputs: Sequence[int]) -> inference_pb2.InferenceServiceEmbedRequest:
    """An Embed request with these inputs."""
    ids = [common_pb2.TokenIds(ids=token_ids) for token_ids in inputs]
    return inference_pb2.InferenceServiceEmbedRequest(inputs=ids)


def test_vectors_equal_transformers(make_engine: Callable[..., Engine], family: str) -> None:
    """In float32 no value differs by more than 1e-5, however the inputs are batched."""
    inputs = prompts(1, 2, 17, 50, 3)
    expected = torch.stack([reference_embedding(family, token_ids) for token_ids in inputs])
    engine = make_engine(family)
    assert engine.embedder is not None
    together = torch.tensor(engine.embedder.embed(inputs))
    model = engine.steps.runner._model  # type: ignore[attr-defined]
    apart = torch.tensor(MeanPoolingEmbedder(model, 20).embed(inputs))
    assert (together - expected).abs().max() <= 1e-5
    assert (apart - expected).abs().max() <= 1e-5
    assert (together.norm(dim=-1) - 1).abs().max() <= 1e-5


async def test_embedding_does_not_affect_generation(stub: Stub) -> None:
    """Both give the same results concurrently as alone, and the KV cache is unchanged."""
    inputs = prompts(40, 7)
    alone = await generate(stub, max_tokens=24)
    tokens, response, again = await asyncio.gather(
        generate(stub, max_tokens=24),
        call_unary(stub.Embed, request(*inputs), timeout=20),
        call_unary(stub.Embed, request(*inputs), timeout=20),
    )
    assert tokens == alone
    expected = [reference_embedding("llama-tied-gqa", token_ids) for token_ids in inputs]
    for embedding, wanted in zip(response.embeddings, expected, strict=True):
        assert torch.tensor(list(embedding.values)).allclose(wanted, atol=1e-5)
    assert response == again


@pytest.mark.parametrize(
    ("inputs", "kind", "words"),
    [
        ([], ErrorKind.INVALID_REQUEST, "inputs must have 1 to 64 items. Given: 0"),
        ([[1]] * (MAX_INPUTS + 1), ErrorKind.INVALID_REQUEST, "Given: 65"),
        ([[1], []], ErrorKind.INVALID_REQUEST, "inputs[1] must hold at least 1 token"),
        ([[VOCAB_SIZE]], ErrorKind.INVALID_REQUEST, f"0 to {VOCAB_SIZE - 1}. Given: {VOCAB_SIZE}"),
        ([[1] * 513], ErrorKind.CONTEXT_TOO_LONG, "512 tokens. However, an input has 513"),
    ],
)
async def test_bad_inputs_are_refused(
    stub: Stub, inputs: list[list[int]], kind: ErrorKind, words: str
) -> None:
    """The message has the limit and the given value; nothing is computed."""
    with pytest.raises(MeshError) as caught:
        await call_unary(stub.Embed, request(*inputs), timeout=20)
    assert caught.value.kind is kind
    assert words in caught.value.message


class SlowEmbedder:
    """Returns when the test opens the gate."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.inputs: list[object] = []

    def embed(self, inputs: Sequence[Sequence[int]]) -> list[list[float]]:
        """Wait for the gate."""
        self.inputs.append(inputs)
        assert self.gate.wait(20)
        return [[1.0] for _ in inputs]


async def test_the_queue_is_bounded_and_drops_cancelled_calls() -> None:
    """One runs, MAX_WAITING wait, the next is refused; a cancelled call is never computed."""
    queue, embedder = EmbeddingQueue(), SlowEmbedder()
    try:
        waiting = [
            asyncio.create_task(queue.embed(embedder, [[number]]))
            for number in range(MAX_WAITING + 1)
        ]
        await eventually(lambda: len(embedder.inputs) == 1, "the first runs")
        with pytest.raises(Overloaded, match="at most 32"):
            await queue.embed(embedder, [[99]])
        waiting[5].cancel()
        await asyncio.wait([waiting[5]])
        last = asyncio.create_task(queue.embed(embedder, [[100]]))
        await asyncio.sleep(0)
        embedder.gate.set()
        await asyncio.gather(*waiting[:5], *waiting[6:], last)
        assert [[5]] not in embedder.inputs
        assert [[100]] in embedder.inputs
    finally:
        embedder.gate.set()
        queue.close()


async def test_a_full_queue_is_resource_exhausted(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for generation, the gRPC status is RESOURCE_EXHAUSTED."""
    monkeypatch.setattr("inference.embedding.queue.MAX_WAITING", -1)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Embed(request([1]), timeout=20, wait_for_ready=True)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_the_fake_engine_returns_vectors() -> None:
    """They have length 1, and depend on the ids only."""
    vectors = await FakeEngine("fake").embed([[1, 2], [3], [4]])
    assert vectors[0] == vectors[1] != vectors[2]
    assert all(sum(value * value for value in vector) == 1 for vector in vectors)
