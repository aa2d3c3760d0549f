"""`POST /tokenize` and `POST /detokenize`."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response

from gateway.dependencies import Dependencies
from gateway.http.json_text import encode
from gateway.observability.request_record import RequestRecord
from gateway.schemas.tokenize import DetokenizeRequest, TokenizeRequest
from gateway.upstream.tokenization import Tokenized
from gateway.validation.body import off_loop, read_json
from gateway.validation.json_body import MAX_VALUES_WITH_IDS

TOKENIZE_ROUTE = "/tokenize"
DETOKENIZE_ROUTE = "/detokenize"

BYTES_PER_TOKEN = 8
"""Estimate of a token's size in a response, which decides whether a thread encodes it."""

ENCODED_AT_ONCE = 10_000
"""Items of one call of the JSON encoder, which holds the interpreter lock to its end."""


class Tokenize:
    """vLLM's access to the tokenizer of a model."""

    def __init__(self, dependencies: Dependencies) -> None:
        self._dependencies = dependencies

    async def tokenize(self, request: Request) -> Response:
        """Encode a text or a conversation."""
        limit = self._dependencies.settings.max_body_bytes
        body = await read_json(request, TokenizeRequest, limit)
        record = RequestRecord.of(request.scope)
        tokenization = await off_loop(record.body_bytes, body.tokenization)
        async with self._dependencies.cancel_scope(request):
            tokenized = await self._dependencies.orchestrator.tokenize(tokenization)
        record.model = tokenized.model
        with_strs = tokenization.return_token_strs
        num_bytes = BYTES_PER_TOKEN * len(tokenized.token_ids)
        text = await off_loop(num_bytes, lambda: _tokenized_json(tokenized, with_strs))
        return Response(text.encode(), media_type="application/json")

    async def detokenize(self, request: Request) -> Response:
        """Decode token ids."""
        limit = self._dependencies.settings.max_body_bytes
        body = await read_json(request, DetokenizeRequest, limit, MAX_VALUES_WITH_IDS)
        async with self._dependencies.cancel_scope(request):
            answer = await self._dependencies.orchestrator.detokenize(body.detokenization())
        RequestRecord.of(request.scope).model = answer.model
        text = await off_loop(len(answer.text), lambda: encode({"prompt": answer.text}))
        return Response(text.encode(), media_type="application/json")


def _tokenized_json(tokenized: Tokenized, with_strs: bool) -> str:
    num_tokens = len(tokenized.token_ids)
    strs = _array(tokenized.token_strs) if with_strs else "null"
    return (
        f'{{"count":{num_tokens},"max_model_len":{tokenized.context_length},'
        f'"tokens":{_array(tokenized.token_ids)},"token_strs":{strs}}}'
    )


def _array(items: Sequence[object]) -> str:
    starts = range(0, len(items), ENCODED_AT_ONCE)
    parts = (encode(list(items[start : start + ENCODED_AT_ONCE]))[1:-1] for start in starts)
    return f"[{','.join(parts)}]"
