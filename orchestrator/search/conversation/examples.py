"""Questions that the documents answer, before anything was asked.

They are made of the definitions in passages that a search for the word of definitions finds, and
kept for a while: each page that is opened asks for them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from mesh.protocol.search import MAX_EXAMPLES
from orchestrator.search.conversation.related import related_questions
from orchestrator.search.search import Search

DEFINING_QUERY = "is a"
"""Finds passages that say what something is, in any English text."""

MAX_AGE_SECONDS = 300.0


class Examples:
    """The example questions of the documents; for one event loop."""

    def __init__(self, search: Search, clock: Callable[[], float] = time.monotonic) -> None:
        self._search = search
        self._clock = clock
        self._questions: Sequence[str] = ()
        self._until = 0.0
        self._searching = asyncio.Lock()
        self._num_searches = 0

    async def questions(self, number: int) -> Sequence[str]:
        """At most `number` questions; searches again after `MAX_AGE_SECONDS`.

        Concurrent callers share one search, also if it fails.
        """
        num_searches = self._num_searches
        if self._clock() >= self._until:
            async with self._searching:
                if self._num_searches == num_searches:
                    await self._search_again()
        return self._questions[:number]

    async def _search_again(self) -> None:
        found = await self._search.retrieve([DEFINING_QUERY], 1, safe_search=True)
        self._num_searches += 1
        if not found.failed:
            self._questions = related_questions([], found.candidates, MAX_EXAMPLES)
            self._until = self._clock() + MAX_AGE_SECONDS
