"""Reads a token stream ahead of its consumer and merges what arrives meanwhile into one chunk.

While a client's connection is blocked, its next message grows, and no queue forms: for each
stream there is at most one message being sent and one chunk being built.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Protocol, cast

from mesh.protocol.finish import GenerationFinish
from mesh.protocol.logprobs import TokenLogprob
from mesh.protocol.tokens import TokenChunk

MAX_PENDING_TOKENS = 1024
"""Reading pauses at this limit, so that HTTP/2 flow control slows the engine's stream."""


def read_ahead(tokens: AsyncIterator[TokenChunk]) -> ReadAhead | MergeReady:
    """An iterator of merged chunks: each has all tokens since the previous one. Enter it at once.

    A stream that has `has_ready` holds what arrives, up to a bound of its own; another one is read
    by a separate task, which ends with the block.
    """
    if getattr(tokens, "has_ready", None) is None:
        return ReadAhead(tokens)
    return MergeReady(cast("HoldingStream", tokens))


def merged(chunks: Sequence[TokenChunk]) -> TokenChunk:
    """One chunk with what is in all of them, in their order; there is at least one."""
    if len(chunks) == 1:
        return chunks[0]
    return TokenChunk(
        [token_id for chunk in chunks for token_id in chunk.token_ids],
        [logprob for chunk in chunks for logprob in chunk.logprobs],
        next((chunk.prompt_logprobs for chunk in chunks if chunk.prompt_logprobs), ()),
        chunks[-1].finish,
    )


class HoldingStream(Protocol):
    """A stream that holds the chunks that have arrived."""

    @property
    def has_ready(self) -> bool | None:
        """Whether a chunk has arrived."""

    async def __anext__(self) -> TokenChunk: ...


class MergeReady:
    """Merges what a stream holds; reads it in the consumer's task."""

    def __init__(self, stream: HoldingStream) -> None:
        self._stream = stream

    async def __aenter__(self) -> MergeReady:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    def __aiter__(self) -> MergeReady:
        return self

    async def __anext__(self) -> TokenChunk:
        """The next chunk, with those that have arrived. Raises the stream's error."""
        chunk = await self._stream.__anext__()
        if chunk.finish is not None or not self._stream.has_ready:
            return chunk
        chunks, num_tokens = [chunk], len(chunk.token_ids)
        while chunk.finish is None and self._stream.has_ready and num_tokens < MAX_PENDING_TOKENS:
            chunk = await self._stream.__anext__()
            chunks.append(chunk)
            num_tokens += len(chunk.token_ids)
        return merged(chunks)


class ReadAhead:
    """Reads a stream in a separate task."""

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
        if self._reading.cancel():  # usually the task has ended already
            await asyncio.gather(self._reading, return_exceptions=True)

    def __aiter__(self) -> ReadAhead:
        return self

    async def __anext__(self) -> TokenChunk:
        """The pending chunk. Raises the stream's error once all chunks before it are taken."""
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
        """Reads until the end of the stream, a finish, or an error."""
        try:
            async for chunk in self._tokens:
                self._token_ids += chunk.token_ids
                self._logprobs += chunk.logprobs
                self._prompt_logprobs = chunk.prompt_logprobs or self._prompt_logprobs
                self._finish = chunk.finish
                # The acceptance of a request is a chunk without tokens.
                self._has_chunk = True
                if chunk.finish is not None:
                    return
                self._ready.set()
                while len(self._token_ids) >= MAX_PENDING_TOKENS:
                    self._taken.clear()
                    await self._taken.wait()
        except Exception as error:
            self._error = error  # raised in the consumer, after the pending chunk
        finally:
            self._ended = True
            self._ready.set()
