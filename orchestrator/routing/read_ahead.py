"""Reads tokens ahead of whoever passes them on: what comes meanwhile becomes one chunk.

While a client's connection takes no more, its messages grow instead of lining up: behind a
reader there is at most one message being sent and one chunk being built.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from mesh.protocol.finish import GenerationFinish
from mesh.protocol.logprobs import TokenLogprob
from mesh.protocol.tokens import TokenChunk

MAX_PENDING_TOKENS = 1024
"""Beyond it nothing more is read, and the engine's side holds the stream up."""


class ReadAhead:
    """All that a stream of tokens has brought since it was last asked, as one chunk a time.

    It reads in a task of its own, which ends with the block.
    """

    def __init__(self, tokens: AsyncIterator[TokenChunk]) -> None:
        self._tokens = tokens
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._prompt_logprobs: Sequence[TokenLogprob] = ()
        self._has_chunk = False
        self._finish: GenerationFinish | None = None
        self._error: Exception | None = None
        self._ended = False
        self._ready = asyncio.Event()
        self._taken = asyncio.Event()

    async def __aenter__(self) -> ReadAhead:
        self._reading = asyncio.create_task(self._read(), name="read ahead")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._reading.cancel():  # mostly it has ended, and to wait for it costs more than it did
            await asyncio.gather(self._reading, return_exceptions=True)

    def __aiter__(self) -> ReadAhead:
        return self

    async def __anext__(self) -> TokenChunk:
        """Whatever is pending; raises what the stream raised once all before it is taken."""
        await self._ready.wait()
        if not self._has_chunk:
            raise self._error or StopAsyncIteration
        chunk = TokenChunk(self._token_ids, self._logprobs, self._prompt_logprobs, self._finish)
        self._token_ids, self._logprobs, self._prompt_logprobs = [], [], ()
        self._has_chunk = False
        self._taken.set()
        if not self._ended:
            self._ready.clear()
        return chunk

    async def _read(self) -> None:
        """Reads to the end, a finish, or a failure."""
        try:
            async for chunk in self._tokens:
                self._token_ids += chunk.token_ids
                self._logprobs += chunk.logprobs
                self._prompt_logprobs = chunk.prompt_logprobs or self._prompt_logprobs
                self._finish = chunk.finish
                # An acceptance has no tokens, and is news all the same.
                self._has_chunk = True
                if chunk.finish is not None:
                    return
                self._ready.set()
                while len(self._token_ids) >= MAX_PENDING_TOKENS:
                    self._taken.clear()
                    await self._taken.wait()
        except Exception as error:
            self._error = error  # raised to the consumer, in its turn
        finally:
            self._ended = True
            self._ready.set()
