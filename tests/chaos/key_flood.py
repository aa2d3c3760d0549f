"""`python -m tests.chaos.key_flood KEY RATE URL…`: one key sends streams at a rate until SIGTERM.

It prints a line when the first request is refused, and at its end the number of responses by
status, and how many streams ran at once.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections import Counter

import httpx

from tests.chaos.load import CompletionRequest

REQUEST = CompletionRequest(prompt="Water is", max_tokens=100)


class Flood:
    """The requests of one run."""

    def __init__(self) -> None:
        self.statuses: Counter[int] = Counter()
        self.peak = 0
        self._num_running = 0
        self._stream_seconds = 0.0
        self._changed = self._began = time.monotonic()

    def report(self) -> dict[str, object]:
        """The counts so far, with the mean number of streams at once."""
        self._change(0)
        mean = self._stream_seconds / (self._changed - self._began)
        return {"statuses": self.statuses, "peak": self.peak, "mean": mean}

    async def send(self, client: httpx.AsyncClient) -> None:
        """One stream, read to its end."""
        body = {**REQUEST.body, "stream": True}
        async with client.stream("POST", "/v1/completions", json=body) as response:
            self.statuses[response.status_code] += 1
            if response.status_code == 429 and self.statuses[429] == 1:
                print("refused", flush=True)
            if response.status_code == 200:
                self._change(1)
                try:
                    async for _ in response.aiter_raw():
                        pass
                finally:
                    self._change(-1)

    def _change(self, by: int) -> None:
        now = time.monotonic()
        self._stream_seconds += self._num_running * (now - self._changed)
        self._changed = now
        self._num_running += by
        self.peak = max(self.peak, self._num_running)


async def main(key: str, rate: float, urls: list[str]) -> None:
    """Send to the gateways in turn, whether or not earlier requests have ended."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    flood, number = Flood(), 0
    headers = {"authorization": f"Bearer {key}"}
    clients = [
        httpx.AsyncClient(base_url=url, headers=headers, timeout=60, trust_env=False)
        for url in urls
    ]
    sending: set[asyncio.Task[None]] = set()
    while not stop.is_set():
        task = asyncio.create_task(flood.send(clients[number % len(clients)]))
        sending.add(task)
        task.add_done_callback(sending.discard)
        number += 1
        await asyncio.sleep(1 / rate)
    report = flood.report()
    for task in sending:
        task.cancel()
    await asyncio.gather(*sending, return_exceptions=True)
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2]), sys.argv[3:]))
