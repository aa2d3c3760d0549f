"""`POST /v1/rerank` and `POST /v1/score`: texts compared by their embeddings."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from contextlib import aclosing
from functools import partial
from operator import mul
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.embeddings import FLOAT32_BYTES
from gateway.dependencies import Dependencies
from gateway.http.json_text import json_response
from gateway.observability.request_record import RequestRecord
from gateway.openai.responses import head
from gateway.schemas.similarity import METHOD, Comparison, RerankRequest, ScoreRequest
from gateway.validation.body import off_loop, read_json

RERANK_ROUTES = ("/v1/rerank", "/rerank", "/v2/rerank")
"""Jina's and vLLM's path, its short form, and that of Cohere's current clients."""

SCORE_ROUTES = ("/v1/score", "/score")

Body = TypeVar("Body", RerankRequest, ScoreRequest)


class Similarities:
    """The cosines of the angles between vectors that arrive in batches."""

    def __init__(self, *, is_pairs: bool) -> None:
        """`is_pairs`: two vectors at a time; otherwise the first one and each of the others."""
        self.values: list[float] = []
        """Each from -1 to 1; 0 for a vector of zeros."""
        self._is_pairs = is_pairs
        self._left: array[float] | None = None

    def add(self, vectors: Sequence[Sequence[float]]) -> None:
        """Take the next vectors."""
        for vector in vectors:
            # An array: of a batch only this vector is kept, at 4 bytes a number.
            numbers = array("f", vector)
            if self._left is None:
                self._left = numbers
                continue
            self.values.append(cosine(self._left, numbers))
            if self._is_pairs:
                self._left = None


def cosine(left: Sequence[float], right: Sequence[float]) -> float:
    """The cosine of the angle between two vectors; 0 if one of them is zero."""
    lengths = math.sqrt(_product(left, left) * _product(right, right))
    if not lengths:
        return 0.0
    return min(1.0, max(-1.0, _product(left, right) / lengths))


def _product(left: Sequence[float], right: Sequence[float]) -> float:
    # Python 3.11 has no math.sumprod.
    product: float = sum(map(mul, left, right))
    return product


class Similarity:
    """Reranking and scoring by the embeddings of the served model."""

    def __init__(self, dependencies: Dependencies) -> None:
        self._dependencies = dependencies

    async def rerank(self, request: Request) -> Response:
        """Sort documents by their similarity to a query."""
        body = await self._read(request, RerankRequest)
        record = RequestRecord.of(request.scope)
        comparison = await off_loop(record.body_bytes, body.comparison)
        scores = await self._compare(request, body.model, comparison)
        return await off_loop(record.body_bytes, lambda: _ranking(body, record, scores))

    async def score(self, request: Request) -> Response:
        """Compare pairs of texts."""
        body = await self._read(request, ScoreRequest)
        record = RequestRecord.of(request.scope)
        comparison = await off_loop(record.body_bytes, body.comparison)
        scores = await self._compare(request, body.model, comparison)
        data = [
            {"object": "score", "index": index, "score": score}
            for index, score in enumerate(scores)
        ]
        rest = {"method": METHOD, "data": data, "usage": _usage(record)}
        return json_response({**head("score", "list", record.model), **rest})

    async def _read(self, request: Request, model: type[Body]) -> Body:
        return await read_json(request, model, self._dependencies.settings.max_body_bytes)

    async def _compare(self, request: Request, model: str, comparison: Comparison) -> list[float]:
        """The similarities, in order: one call of the orchestrator embeds all texts."""
        record = RequestRecord.of(request.scope)
        usage = record.usage
        usage.prompt_tokens = 0
        similarities = Similarities(is_pairs=comparison.is_pairs)
        batches = self._dependencies.orchestrator.embed(comparison.texts, model, comparison.names)
        async with self._dependencies.cancel_scope(request), aclosing(batches):
            async for batch in batches:
                record.model = batch.model
                usage.prompt_tokens += batch.prompt_tokens
                num_bytes = FLOAT32_BYTES * sum(map(len, batch.vectors))
                await off_loop(num_bytes, partial(similarities.add, batch.vectors))
        return similarities.values


def _ranking(body: RerankRequest, record: RequestRecord, scores: Sequence[float]) -> Response:
    """The response: results of equal similarity are in the order of the request."""
    ranked = sorted(range(len(scores)), key=lambda index: -scores[index])
    results: list[dict[str, object]] = []
    for index in ranked[: body.top_n or len(ranked)]:
        result: dict[str, object] = {"index": index, "relevance_score": scores[index]}
        if body.return_documents:
            result["document"] = {"text": body.documents[index].text}
        results.append(result)
    start = {"id": head("rerank", "list", "")["id"], "model": record.model, "method": METHOD}
    return json_response({**start, "results": results, "usage": _usage(record)})


def _usage(record: RequestRecord) -> dict[str, int]:
    num_tokens = record.usage.prompt_tokens or 0
    return {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
