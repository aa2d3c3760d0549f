"""A fake encoder: words of one concept share a dimension, so synonyms have equal vectors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from orchestrator.search.language.words import split_words
from tests.orchestrator.search.retrievers.fake_engine import (
    FakeEngine,
    RecordedRequest,
    Refused,
    fake_engine,
)

CONCEPTS = (
    {"car", "automobile", "vehicle"},
    {"dog", "hound", "canine"},
    {"ship", "vessel", "boat"},
    {"doctor", "physician"},
    {"house", "dwelling"},
)
NUM_DIMENSIONS = 2 * len(CONCEPTS) + 2
"""No multiple of 8: the index pads vectors."""


def vector(text: str) -> list[float]:
    """A count for each concept, noise from the length, and a constant."""
    words = split_words(text)
    counts = [float(sum(word in concept for word in words)) for concept in CONCEPTS]
    return [*counts, *(-count for count in counts), 0.01, 0.001 * len(text)]


class FakeEncoder:
    """An `Embedder` without a server."""

    def __init__(self, model: str = "concepts") -> None:
        self.model = model
        self.texts: list[str] = []

    async def embed(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        """Records the texts."""
        self.texts += texts
        return [vector(text) for text in texts]

    async def close(self) -> None:
        """Does nothing."""


SERVED = {"object": "list", "data": [
    {"id": "chat", "kind": "generation"}, {"id": "concepts", "kind": "embedding"},
]}  # fmt: skip
"""The models of the server."""


def embeddings(request: RecordedRequest) -> object:
    """The response of OpenAI's API, in another order than the inputs."""
    if request.path.endswith("/models"):
        return SERVED
    if request.body["model"] != "concepts":
        return Refused(404, {"error": {"message": "The model does not exist.", "type": "t"}})
    data = [
        {"object": "embedding", "index": index, "embedding": vector(text)}
        for index, text in enumerate(request.body["input"])
    ]
    return {"object": "list", "data": data[::-1], "model": request.body["model"]}


@asynccontextmanager
async def encoder_server() -> AsyncIterator[FakeEngine]:
    """A server with `/v1/embeddings`; its `url` ends in /v1."""
    async with fake_engine(embeddings) as server:
        server.url += "/v1"
        yield server
