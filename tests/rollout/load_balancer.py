"""Clients of the gateway's Service: a new connection to a ready endpoint for each request."""

from __future__ import annotations

import asyncio
import random
import ssl
import statistics
import time
from collections.abc import Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import httpx

from tests.chaos.load import CompletionRequest, CompletionResult, Oracle, stream_completion
from tests.rollout.deployment import Deployment

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Unused, as all URLs are http; httpx would make a context for each client, in 20 ms."""


class Counts(NamedTuple):
    """What clients saw during one change."""

    streams: int
    refused: int
    """Requests without a stream: another status than 200, or no connection."""
    broken: int
    """Streams that ended with an error."""
    wrong: int
    """Streams with another text than the expected one."""
    longest_wait: float
    """Longest time to the first token, in seconds."""
    longest_gap: float
    """Longest time between two tokens, in seconds."""


class AfterKill(NamedTuple):
    """What clients saw of requests that they sent after a pod was killed."""

    new_requests: int
    """Requests that were sent before the killed pod was ready again."""
    typical_wait: float
    """Median of their times to the first token, in seconds; of the only pod from its readiness."""
    quiet_wait: float
    """Longest time to the first token of requests that were answered before."""


@dataclass
class Clients:
    """Closed loops of streams, whose texts are known."""

    gateway: Deployment
    oracle: Oracle
    requests: Sequence[CompletionRequest]
    seed: int
    results: list[tuple[CompletionRequest, CompletionResult]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def running(self, number: int):  # type: ignore[no-untyped-def]
        """`number` clients, until the end of the block; streams that run then are finished."""
        stop = asyncio.Event()
        tasks = [
            asyncio.create_task(self._loop(random.Random(self.seed * 1000 + each), stop))
            for each in range(number)
        ]
        try:
            yield
        finally:
            stop.set()
            await asyncio.gather(*tasks)

    async def send(self, request: CompletionRequest, generator: random.Random) -> CompletionResult:
        """One stream over a new connection."""
        while not self.gateway.endpoints:
            result = CompletionResult(error="the Service has no endpoints")
            result.times.append(time.monotonic())
            await asyncio.sleep(0.2)
            return result
        host = generator.choice(self.gateway.endpoints)
        url = f"http://{host}:{self.gateway.port}"
        async with httpx.AsyncClient(
            base_url=url, timeout=120, trust_env=False, verify=NO_TLS
        ) as client:
            return await stream_completion(client, request)

    async def _loop(self, generator: random.Random, stop: asyncio.Event) -> None:
        while not stop.is_set():
            request = generator.choice(self.requests)
            result = await self.send(request, generator)
            self.results.append((request, result))
            if result.status != 200:
                self.problems.append(f"{result.status} {result.error[:200]}")
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.2):
                        await stop.wait()
            elif not result.complete:
                self.problems.append(f"broken: {result.error[:200]}")

    def take(self) -> Counts:
        """The counts since the last call."""
        results, self.results = self.results, []
        streams = [(asked, got) for asked, got in results if got.status == 200]
        complete = [(asked, got) for asked, got in streams if got.complete]
        gaps = [_longest_gap(got) for _, got in complete]
        return Counts(
            streams=len(streams),
            refused=len(results) - len(streams),
            broken=len(streams) - len(complete),
            wrong=sum(not self._is_expected(*each) for each in streams),
            longest_wait=max((got.ttft for _, got in streams), default=0.0),
            longest_gap=max(gaps, default=0.0),
        )

    def after_kill(self, killed: float, served: float, ready: float) -> AfterKill:
        """Of the results that were not taken yet.

        All in `time.monotonic()`: when the pod was killed, from when on a pod was ready to serve,
        and when the killed one was ready again.
        """
        times = [got.times for _, got in self.results if got.status == 200]
        quiet = [first - sent for sent, first, *_ in times if first < killed]
        waits = [first - max(sent, served) for sent, first, *_ in times if killed <= sent < ready]
        typical = statistics.median(waits) if waits else 0.0
        return AfterKill(len(waits), typical, max(quiet, default=0.0))

    def _is_expected(self, request: CompletionRequest, result: CompletionResult) -> bool:
        expected = self.oracle.texts[request]
        return result.text == expected if result.complete else expected.startswith(result.text)


def _longest_gap(result: CompletionResult) -> float:
    return max((after - before for before, after in pairwise(result.times[1:])), default=0.0)
