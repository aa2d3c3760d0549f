"""Rerankers of passages: Weir's own engines, or a server with the `/rerank` API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from orchestrator.admission.validation import SCORES, choose_model
from orchestrator.clients.tokenizer import TextOptions
from orchestrator.clients.tokenizers import Tokenizers
from orchestrator.embedding import embed_batch, split_batches
from orchestrator.routing.replicas import Replicas
from orchestrator.scoring import Pairs, Scorer
from orchestrator.search.http_json import HttpJsonClient, HttpJsonError

_TRUNCATED = TextOptions(truncate=True)


class Reranker(Protocol):
    """Scores how well documents answer a query."""

    async def scores(self, query: str, documents: Sequence[str]) -> Sequence[float]:
        """The relevance of each document, of any range; higher is better. May raise anything."""
        ...

    async def close(self) -> None:
        """Closes connections."""
        ...


class EngineReranker:
    """Scores with a model that Weir's engines serve: a cross-encoder, or an encoder."""

    def __init__(self, model: str, tokenizers: Tokenizers, replicas: Replicas) -> None:
        self._model = model
        self._tokenizers = tokenizers
        self._replicas = replicas

    async def scores(self, query: str, documents: Sequence[str]) -> Sequence[float]:
        """Raises MeshError. Texts are cut off at the model's context."""
        model = choose_model(self._model, list(self._replicas.models.values()), kinds=SCORES)
        scorer = Scorer(Pairs([query], documents), model)
        tokenizer = self._tokenizers.of(model.tokenizer)
        encoded = await scorer.encode(tokenizer, _TRUNCATED, is_search=True)
        found: list[float] = []
        for batch in split_batches(encoded):
            found += scorer.scores(await embed_batch(batch, model, self._replicas))
        return found

    async def close(self) -> None:
        """Does nothing: the channels belong to the application."""


class HttpReranker:
    """Scores with `POST URL/rerank`, the API of Jina, Cohere, vLLM and TEI."""

    def __init__(self, url: str, model: str, key: str, timeout_seconds: float) -> None:
        """`url` ends before `/rerank`, such as `http://host:8080/v1`. Opens no connection."""
        self._model = model
        self._client = HttpJsonClient(url, timeout_seconds, key=key)

    async def scores(self, query: str, documents: Sequence[str]) -> Sequence[float]:
        """Raises HttpJsonError or httpx.HTTPError."""
        body = {
            "model": self._model,
            "query": query,
            "documents": list(documents),
            "top_n": len(documents),
            "return_documents": False,
        }
        response = await self._client.request("POST", "/rerank", body=body)
        ranked = response.get("results")
        if not isinstance(ranked, list):
            raise HttpJsonError("response must have the list results")
        scores: dict[int, float] = {}
        for each in ranked:
            place = each.get("index") if isinstance(each, dict) else None
            score = each.get("relevance_score") if isinstance(each, dict) else None
            if not isinstance(place, int) or not isinstance(score, int | float):
                raise HttpJsonError("each of results must have index and relevance_score")
            scores[place] = float(score)
        if scores.keys() != set(range(len(documents))):
            raise HttpJsonError("results must have each document once")
        return [scores[place] for place in range(len(documents))]

    async def close(self) -> None:
        await self._client.close()
