"""Encoders of queries and passages: Weir's own engines, or an OpenAI-compatible server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import httpx

from orchestrator.admission.validation import EMBEDS, choose_model
from orchestrator.clients.tokenizers import Tokenizers
from orchestrator.embedding import check_inputs, embed_batch, encode_inputs, split_batches
from orchestrator.routing.replicas import Replicas
from orchestrator.search.http_json import HttpJsonClient, HttpJsonError

MAX_DIMENSIONS = 8192
"""Maximum numbers in a vector that a server returns."""


MAX_MODELS_NAMED = 20
"""Models of a server that an error lists."""


class UnknownEncoder(Exception):
    """The server does not serve the encoder; the message names those that it serves."""


class Embedder(Protocol):
    """Turns texts into vectors whose angles are small for texts of similar meaning."""

    model: str
    """Name of the encoder; vectors of different encoders are not comparable."""

    async def embed(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        """The vectors of `texts`, in order. May raise any exception."""
        ...

    async def close(self) -> None:
        """Closes connections."""
        ...


class EngineEmbedder:
    """Embeds with a model that Weir's engines serve."""

    def __init__(self, model: str, tokenizers: Tokenizers, replicas: Replicas) -> None:
        self.model = model
        self._tokenizers = tokenizers
        self._replicas = replicas

    async def embed(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        """Raises MeshError."""
        check_inputs(texts)
        model = choose_model(self.model, list(self._replicas.models.values()), kinds=EMBEDS)
        encoded = await encode_inputs(texts, model, self._tokenizers.of(model.tokenizer))
        vectors: list[Sequence[float]] = []
        for batch in split_batches(encoded):
            vectors += await embed_batch(batch, model, self._replicas)
        return vectors

    async def close(self) -> None:
        """Does nothing: the channels belong to the application."""


class HttpEmbedder:
    """Embeds with `POST URL/embeddings`, as OpenAI, vLLM, TEI and Weir's own gateway serve it."""

    def __init__(self, url: str, model: str, key: str, timeout_seconds: float) -> None:
        """`url` ends before `/embeddings`, such as `http://host:8080/v1`. Opens no connection."""
        self.model = model
        self._client = HttpJsonClient(url, timeout_seconds, key=key)

    async def embed(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        """Raises UnknownEncoder, HttpJsonError or httpx.HTTPError."""
        body = {"model": self.model, "input": list(texts), "encoding_format": "float"}
        try:
            response = await self._client.request("POST", "/embeddings", body=body)
        except HttpJsonError as error:
            if error.status != httpx.codes.NOT_FOUND:
                raise
            raise await self._unknown(error) from error
        data = response.get("data")
        if not isinstance(data, list) or len(data) != len(texts):
            raise HttpJsonError(f"response must have the list data with {len(texts)} embeddings")
        vectors: dict[int, Sequence[float]] = {}
        for place, each in enumerate(data):
            if not isinstance(each, dict) or not _is_vector(each.get("embedding")):
                raise HttpJsonError(f"data[{place}].embedding must be a list of numbers")
            vectors[each.get("index", place)] = each["embedding"]
        if vectors.keys() != set(range(len(texts))):
            raise HttpJsonError("data must have each index once")
        return [vectors[number] for number in range(len(texts))]

    async def close(self) -> None:
        await self._client.close()

    async def _unknown(self, error: HttpJsonError) -> UnknownEncoder | HttpJsonError:
        """What to report after HTTP 404, by the models that the server lists."""
        try:
            response = await self._client.request("GET", "/models")
        except (HttpJsonError, httpx.HTTPError):
            return HttpJsonError(f"{self.model}: {error}", error.status)
        served = _encoders(response.get("data"))
        if self.model in served:
            return HttpJsonError(f"{self.model}: {error}", error.status)
        return UnknownEncoder(
            f"the server has no encoder {self.model}; it serves {', '.join(served) or 'none'}"
        )


def _encoders(models: object) -> list[str]:
    """The names in a list of models: of those that embed, where the server says what they do."""
    listed = [each for each in models if isinstance(each, dict)] if isinstance(models, list) else []
    embedding = [each for each in listed if each.get("kind") == "embedding"] or listed
    names = [name for each in embedding if isinstance(name := each.get("id"), str)]
    return names[:MAX_MODELS_NAMED]


def _is_vector(value: object) -> bool:
    return (
        isinstance(value, list)
        and 1 <= len(value) <= MAX_DIMENSIONS
        and all(isinstance(number, int | float) for number in value)
    )
