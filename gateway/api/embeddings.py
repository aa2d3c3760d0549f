"""`POST /v1/embeddings`."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response

from gateway.dependencies import Dependencies
from gateway.http.json_text import json_response
from gateway.observability.request_record import RequestRecord
from gateway.schemas.embeddings import EmbeddingRequest
from gateway.validation.body import off_loop, read_json

ROUTE = "/v1/embeddings"


class Embeddings:
    """OpenAI's embeddings."""

    def __init__(self, dependencies: Dependencies) -> None:
        self._dependencies = dependencies

    async def create(self, request: Request) -> Response:
        """Embed one text or several."""
        body = await read_json(
            request, EmbeddingRequest, self._dependencies.settings.max_body_bytes
        )
        record = RequestRecord.of(request.scope)
        inputs = await off_loop(record.body_bytes, body.inputs)
        usage = record.usage
        usage.prompt_tokens = 0
        model = ""
        data: list[dict[str, object]] = []
        batches = self._dependencies.orchestrator.embed(inputs, body.model, body.names())
        async with self._dependencies.cancel_scope(request), aclosing(batches):
            async for batch in batches:
                model = batch.model
                usage.prompt_tokens += batch.prompt_tokens
                for vector in batch.vectors:
                    data.append(_embedding(len(data), vector, body.encoding_format))
        num_tokens = usage.prompt_tokens
        tokens = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
        return json_response({"object": "list", "data": data, "model": model, "usage": tokens})


def _embedding(index: int, vector: Sequence[float], encoding: str) -> dict[str, object]:
    value: object = list(vector)
    if encoding == "base64":
        value = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
    return {"object": "embedding", "index": index, "embedding": value}
