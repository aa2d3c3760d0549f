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
from orchestrator.generation import TokenChunk, TokenFinish

Item = TokenChunk | TokenFinish


def patiently(
    tokens: AsyncGenerator[Item, None], request: RequestContext | None
) -> AsyncGenerator[Item, None]:
    """`tokens`, within the request's first-token deadline and idle time-out, if it has any.

    Raises MeshError (DEADLINE). Close what is returned; that closes `tokens`.
    """
    if request is None or (request.first_token_deadline is None and not request.idle_timeout):
        return tokens  # nothing to pay for on the way of each token
    return _within(tokens, request)


async def _within(
    tokens: AsyncGenerator[Item, None], request: RequestContext
) -> AsyncGenerator[Item, None]:
    has_token = False
    async with aclosing(tokens):
        while True:
            if has_token or request.first_token_deadline is None:
                limit, what = request.idle_timeout, "no token came in time after the last one"
            else:
                limit = max(0.0, request.first_token_deadline - time.monotonic())
                what = "the first token did not come in time"
            item = await _next(tokens, limit, what)
            if item is None:
                return
            has_token = has_token or (isinstance(item, TokenChunk) and bool(item.token_ids))
            yield item


async def _next(tokens: AsyncIterator[Item], limit: float | None, what: str) -> Item | None:
    try:
        async with asyncio.timeout(limit) as scope:
            return await anext(tokens, None)
    except TimeoutError:
        if not scope.expired():
            raise
        raise MeshError(ErrorKind.DEADLINE, what) from None
