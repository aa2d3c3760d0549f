"""Timeouts of a token stream: for the first token, and between two tokens.

Time counts only while the orchestrator waits for tokens: a client that reads slowly does not use
it up. Waiting for another replica during a failover counts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Protocol

from mesh.context import RequestContext
from mesh.errors import ErrorKind, MeshError
from mesh.protocol.tokens import TokenChunk


class TokenSource(Protocol):
    """Chunks of one generation, from any number of replicas. Must be closed by its reader."""

    def __aiter__(self) -> AsyncIterator[TokenChunk]: ...

    async def aclose(self) -> None: ...


def with_timeouts(
    tokens: AsyncGenerator[TokenChunk, None], request: RequestContext | None
) -> TokenSource:
    """`tokens`, limited by the request's first-token deadline and idle timeout, if it has any.

    Reading raises MeshError (DEADLINE). Closing the result closes `tokens`.
    """
    if request is None or (request.first_token_deadline is None and not request.idle_timeout):
        return tokens  # no cost per token
    return _WithTimeouts(tokens, request)


class _WithTimeouts:
    def __init__(self, tokens: AsyncGenerator[TokenChunk, None], request: RequestContext) -> None:
        self._tokens = tokens
        self._request = request
        self._has_token = False

    def __aiter__(self) -> _WithTimeouts:
        return self

    async def __anext__(self) -> TokenChunk:
        request = self._request
        if self._has_token or request.first_token_deadline is None:
            limit, message = request.idle_timeout, "no token came in time after the last one"
        else:
            limit = max(0.0, request.first_token_deadline - time.monotonic())
            message = "the first token did not come in time"
        try:
            async with asyncio.timeout(limit) as scope:
                chunk = await anext(self._tokens)
        except TimeoutError:
            if not scope.expired():
                raise
            raise MeshError(ErrorKind.DEADLINE, message) from None
        self._has_token = self._has_token or bool(chunk.token_ids)
        return chunk

    async def aclose(self) -> None:
        await self._tokens.aclose()
