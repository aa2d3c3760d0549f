"""How long to wait for the first token, and for each next one.

Time counts only while tokens are waited for: a client that is slow to read does not use it up.
What is waited for includes other replicas, where one was lost.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from mesh.context import RequestContext
from mesh.errors import ErrorKind, MeshError
from mesh.protocol.tokens import TokenChunk


def patiently(
    tokens: AsyncGenerator[TokenChunk, None], request: RequestContext | None
) -> AsyncGenerator[TokenChunk, None]:
    """`tokens`, within the request's first-token deadline and idle time-out, if it has any.

    Raises MeshError (DEADLINE). Close what is returned; that closes `tokens`.
    """
    if request is None or (request.first_token_deadline is None and not request.idle_timeout):
        return tokens  # nothing to pay for on the way of each token
    return _within(tokens, request)


async def _within(
    tokens: AsyncGenerator[TokenChunk, None], request: RequestContext
) -> AsyncGenerator[TokenChunk, None]:
    has_token = False
    async with aclosing(tokens):
        while True:
            if has_token or request.first_token_deadline is None:
                limit, what = request.idle_timeout, "no token came in time after the last one"
            else:
                limit = max(0.0, request.first_token_deadline - time.monotonic())
                what = "the first token did not come in time"
            chunk = await _next(tokens, limit, what)
            if chunk is None:
                return
            has_token = has_token or bool(chunk.token_ids)
            yield chunk


async def _next(
    tokens: AsyncIterator[TokenChunk], limit: float | None, what: str
) -> TokenChunk | None:
    try:
        async with asyncio.timeout(limit) as scope:
            return await anext(tokens, None)
    except TimeoutError:
        if not scope.expired():
            raise
        raise MeshError(ErrorKind.DEADLINE, what) from None
