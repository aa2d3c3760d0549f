"""`POST /v1/rerank` and `POST /v1/score`, by a cross-encoder or by embeddings."""

from __future__ import annotations

from array import array
from contextlib import aclosing
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response

from gateway.dependencies import Dependencies
from gateway.http.json_text import json_response
from gateway.observability.request_record import RequestRecord
from gateway.openai.responses import head
from gateway.schemas.similarity import RerankRequest, ScoreRequest
from gateway.upstream.generation import Scored, TextPairs
from gateway.validation.body import off_loop, read_json

RERANK_ROUTES = ("/v1/rerank", "/rerank", "/v2/rerank")
"""Jina's and vLLM's path, its short form, and that of Cohere's current clients."""

SCORE_ROUTES = ("/v1/score", "/score")

Body = TypeVar("Body", RerankRequest, ScoreRequest)


class Similarity:
    """Reranking and scoring."""

    def __init__(self, dependencies: Dependencies) -> None:
        self._dependencies = dependencies

    async def rerank(self, request: Request) -> Response:
        """Sort documents by their relevance to a query."""
        body = await self._read(request, RerankRequest)
        record = RequestRecord.of(request.scope)
        pairs = await off_loop(record.body_bytes, body.pairs)
        scored = await self._score(request, pairs)
        return await off_loop(record.body_bytes, lambda: _ranking(body, record, scored))

    async def score(self, request: Request) -> Response:
        """Score pairs of texts."""
        body = await self._read(request, ScoreRequest)
        record = RequestRecord.of(request.scope)
        scored = await self._score(request, await off_loop(record.body_bytes, body.pairs))
        data = [
            {"object": "score", "index": index, "score": score}
            for index, score in enumerate(scored.scores)
        ]
        rest = {"method": scored.method, "data": data, "usage": _usage(record)}
        return json_response({**head("score", "list", record.model), **rest})

    async def _read(self, request: Request, model: type[Body]) -> Body:
        return await read_json(request, model, self._dependencies.settings.max_body_bytes)

    async def _score(self, request: Request, pairs: TextPairs) -> Scored:
        """All scores, in order."""
        record = RequestRecord.of(request.scope)
        usage = record.usage
        usage.prompt_tokens = 0
        method, scores = "", array("d")
        batches = self._dependencies.orchestrator.score(pairs)
        async with self._dependencies.cancel_scope(request), aclosing(batches):
            async for batch in batches:
                record.model = batch.model
                usage.prompt_tokens += batch.prompt_tokens
                method = batch.method
                scores.extend(batch.scores)
        return Scored(record.model, method, scores, usage.prompt_tokens)


def _ranking(body: RerankRequest, record: RequestRecord, scored: Scored) -> Response:
    """The response: results of equal relevance are in the order of the request."""
    scores = scored.scores
    ranked = sorted(range(len(scores)), key=lambda index: -scores[index])
    results: list[dict[str, object]] = []
    for index in ranked[: body.top_n or len(ranked)]:
        result: dict[str, object] = {"index": index, "relevance_score": scores[index]}
        if body.return_documents:
            result["document"] = {"text": body.documents[index].text}
        results.append(result)
    start = {"id": head("rerank", "list", "")["id"], "model": record.model, "method": scored.method}
    return json_response({**start, "results": results, "usage": _usage(record)})


def _usage(record: RequestRecord) -> dict[str, int]:
    num_tokens = record.usage.prompt_tokens or 0
    return {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
