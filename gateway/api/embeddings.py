"""`POST /v1/embeddings`."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Sequence
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response

from gateway.dependencies import Dependencies
from gateway.http.json_text import encode
from gateway.observability.request_record import RequestRecord
from gateway.schemas.embeddings import EmbeddingRequest
from gateway.validation.body import off_loop, read_json
from gateway.validation.json_body import MAX_VALUES_WITH_IDS
from mesh.errors import invalid

ROUTE = "/v1/embeddings"

FLOAT32_BYTES = 4


class Embeddings:
    """OpenAI's embeddings."""

    def __init__(self, dependencies: Dependencies) -> None:
        self._dependencies = dependencies

    async def create(self, request: Request) -> Response:
        """Embed one text or several."""
        body = await read_json(
            request,
            EmbeddingRequest,
            self._dependencies.settings.max_body_bytes,
            MAX_VALUES_WITH_IDS,
        )
        record = RequestRecord.of(request.scope)
        embedding = await off_loop(record.body_bytes, body.embedding)
        usage = record.usage
        usage.prompt_tokens = 0
        data: list[str] = []
        batches = self._dependencies.orchestrator.embed(embedding)
        async with self._dependencies.cancel_scope(request), aclosing(batches):
            async for batch in batches:
                record.model = batch.model
                usage.prompt_tokens += batch.prompt_tokens
                data += await _encode_batch(batch.vectors, len(data), body)
        num_tokens = usage.prompt_tokens
        tokens = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
        rest = encode({"object": "list", "model": record.model, "usage": tokens})
        text = f'{{"data":[{",".join(data)}],{rest[1:]}'
        return Response(text.encode(), media_type="application/json")


def shortened(vector: Sequence[float], dimensions: int | None) -> list[float]:
    """The first values of a vector, scaled to length 1 as OpenAI does; all if None.

    Raises MeshError (INVALID_REQUEST): the vectors show how many values the model's have.
    """
    if dimensions is None or dimensions == len(vector):
        return list(vector)
    if dimensions > len(vector):
        message = f"dimensions must be at most {len(vector)}, given {dimensions}"
        raise invalid("dimensions", message)
    kept = list(vector[:dimensions])
    length = math.hypot(*kept)
    return [value / length for value in kept] if length else kept


async def _encode_batch(
    vectors: Sequence[Sequence[float]], first: int, body: EmbeddingRequest
) -> list[str]:
    """JSON of each vector; a large batch in a thread.

    Each is encoded by itself, because one call of the encoder holds the interpreter lock to its
    end: two million numbers take about a second.
    """

    def encode_all() -> list[str]:
        return [
            _encode(first + n, shortened(vector, body.dimensions), body.encoding_format)
            for n, vector in enumerate(vectors)
        ]

    return await off_loop(FLOAT32_BYTES * sum(map(len, vectors)), encode_all)


def _encode(index: int, vector: list[float], encoding: str) -> str:
    value: object = vector
    if encoding == "base64":
        value = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
    return encode({"object": "embedding", "index": index, "embedding": value})
