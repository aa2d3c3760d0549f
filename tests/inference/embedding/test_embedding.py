"""Embeddings: equal to transformers', concurrent with generation, with checked inputs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import pytest
import torch

from inference.embedding.calls import MAX_INPUTS, EmbeddingCall
from inference.engine.engine import Engine
from inference.engine.fake_engine import FakeEngine
from mesh.errors import ErrorKind, MeshError
from mesh.rpc.channel import call_unary
from mesh.v1 import common_pb2, inference_pb2, inference_pb2_grpc
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


def embed(engine: Engine, inputs: Sequence[Sequence[int]]) -> list[list[float]]:
    """The vectors of one call, computed piece by piece."""
    assert engine.embeddings is not None
    call = EmbeddingCall(inputs)
    engine.embeddings.add(call)
    while not engine.embeddings.run_piece():
        assert engine.has_work
    assert call.error is None
    return call.vectors


def test_vectors_equal_transformers(make_engine: Callable[..., Engine], family: str) -> None:
    """In float32 no value differs by more than 1e-5; a piece has at most 32 tokens here."""
    inputs = prompts(1, 2, 17, 50, 3)
    expected = torch.stack([reference_embedding(family, token_ids) for token_ids in inputs])
    engine = make_engine(family, max_num_seqs=8, max_num_batched_tokens=32)
    vectors = torch.tensor(embed(engine, inputs))
    assert (vectors - expected).abs().max() <= 1e-5
    assert (vectors.norm(dim=-1) - 1).abs().max() <= 1e-5
    engine.check_when_idle()
    assert engine.load().kv_usage == 0


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
    for each in (response, again):
        for embedding, wanted in zip(each.embeddings, expected, strict=True):
            assert torch.tensor(list(embedding.values)).allclose(wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("inputs", "kind", "words"),
    [
        ([], ErrorKind.INVALID_REQUEST, "inputs must have 1 to 64 items. Given: 0"),
        ([[1]] * (MAX_INPUTS + 1), ErrorKind.INVALID_REQUEST, "Given: 65"),
        ([[1], []], ErrorKind.INVALID_REQUEST, "inputs[1] must hold at least 1 token"),
        ([[VOCAB_SIZE]], ErrorKind.INVALID_REQUEST, f"0 to {VOCAB_SIZE - 1}. Given: {VOCAB_SIZE}"),
        ([[1] * 513], ErrorKind.CONTEXT_TOO_LONG, "512 tokens. However, inputs[0] has 513"),
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


async def test_the_fake_engine_returns_vectors() -> None:
    """They have length 1, and depend on the ids only."""
    vectors = await FakeEngine("fake").embed([[1, 2], [3], [4]])
    assert vectors[0] == vectors[1] != vectors[2]
    assert all(sum(value * value for value in vector) == 1 for vector in vectors)
