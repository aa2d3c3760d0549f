"""Several streams as one, in the order in which their items arrive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import NamedTuple, TypeVar

Item = TypeVar("Item")


class _End(NamedTuple):
    error: Exception | None


async def merged(streams: Sequence[AsyncGenerator[Item, None]]) -> AsyncGenerator[Item, None]:
    """Yield the items of all streams; raises the first error. Closing it closes the streams.

    At most one item waits, and one more in each stream: a slow consumer holds all of them.
    """
    queue: asyncio.Queue[Item | _End] = asyncio.Queue(maxsize=1)
    tasks = [
        asyncio.create_task(_pump(stream, queue), name=f"choice {number}")
        for number, stream in enumerate(streams)
    ]
    num_running = len(tasks)
    try:
        while num_running:
            item = await queue.get()
            if not isinstance(item, _End):
                yield item
                continue
            num_running -= 1
            if item.error is not None:
                raise item.error
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(stream: AsyncGenerator[Item, None], queue: asyncio.Queue[Item | _End]) -> None:
    error: Exception | None = None
    try:
        async with aclosing(stream):
            async for item in stream:
                await queue.put(item)
    except Exception as failure:
        error = failure
    await queue.put(_End(error))
