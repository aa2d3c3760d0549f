"""What Prometheus has counted between two times, compared with what a client recorded."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter

from tests.e2e.support.prometheus import Prometheus

COUNT, TTFT, TOKENS = (
    "gen_ai_server_request_duration_seconds",
    "gen_ai_server_time_to_first_token_seconds",
    "gen_ai_client_token_usage",
)


class Snapshot:
    """The counters of Prometheus at one time."""

    def __init__(self, prometheus: Prometheus) -> None:
        names = "|".join((COUNT, TTFT, TOKENS))
        self._values = {
            tuple(sorted(each["metric"].items())): float(each["value"][1])
            for each in prometheus.query(f'{{__name__=~"({names})_(count|sum|bucket)"}}')
        }

    def since(
        self, before: Snapshot, name: str, **labels: str
    ) -> list[tuple[dict[str, str], float]]:
        """The increase of each series of a metric with these labels."""
        wanted = {"__name__": name, **labels}
        return [
            (dict(series), value - before._values.get(series, 0.0))
            for series, value in self._values.items()
            if wanted.items() <= dict(series).items()
        ]

    def counts(self, before: Snapshot) -> dict[tuple[str, str], int]:
        """Ended requests by operation and error."""
        found: Counter[tuple[str, str]] = Counter()
        for labels, value in self.since(before, f"{COUNT}_count"):
            found[labels["gen_ai_operation_name"], labels.get("error_type", "")] += int(value)
        return {place: number for place, number in found.items() if number}

    def tokens(self, before: Snapshot, operation: str, kind: str) -> float:
        """Tokens of all requests of an operation; `kind` is input or output."""
        labels = {"gen_ai_operation_name": operation, "gen_ai_token_type": kind}
        return sum(value for _, value in self.since(before, f"{TOKENS}_sum", **labels))

    def buckets(self, before: Snapshot, name: str, operation: str) -> list[tuple[float, float]]:
        """Upper limit and cumulative count of each bucket, of requests without an error."""
        found: Counter[float] = Counter()
        for labels, value in self.since(before, f"{name}_bucket", gen_ai_operation_name=operation):
            if not labels.get("error_type"):
                found[float(labels["le"])] += value
        return sorted(found.items())


def check_times(buckets: list[tuple[float, float]], times: list[float], lag: EventLoopLag) -> None:
    """Compares p50 and p95 with those of the client, whose times are longer by the network's.

    They may differ by the width of the bucket, and by the time for which the client was not
    scheduled.
    """
    times = sorted(times)
    assert buckets[-1][1] == len(times)
    limits = [0.0, *(limit for limit, _ in buckets)]
    for share in (0.5, 0.95):
        place = math.ceil(share * len(times)) - 1
        number = next(n for n, (_, count) in enumerate(buckets) if count > place)
        least, most = limits[number], limits[number + 1]
        assert least <= times[place] <= most + 2 * lag.most + 0.1, (share, buckets, times)


class EventLoopLag:
    """The longest delay of a thread of this process inside the block."""

    most = 0.0

    def __enter__(self) -> EventLoopLag:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._measure)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _measure(self) -> None:
        while not self._ended.is_set():
            began = time.monotonic()
            self._ended.wait(0.01)
            self.most = max(self.most, time.monotonic() - began - 0.01)
