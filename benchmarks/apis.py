"""Time to the first event and CPU time per token of each generation API, in one run.

    python -m benchmarks.apis --out docs/benchmarks/apis.json

The same conversation is streamed through each API by the four services with the fake engine. The
APIs alternate, round after round, in changing order; a figure is the median over the rounds. The
CPU time is that of gateway, orchestrator and tokenizer, from the kernel. The ratio is that to chat
completions in the same round.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import uvloop

from benchmarks.harness.percentile import percentile
from benchmarks.harness.processes import Processes
from benchmarks.harness.sse_load import Stream, connect
from benchmarks.harness.stack import FAKE_MODEL, Services

COUNTED = ("gateway", "orchestrator", "tokenizer")
LIMITS = {
    "orchestrator": ("--max-concurrent-requests", "2048", "--max-outstanding-tokens", "4000000"),
}
MESSAGES = [{"role": "user", "content": "Write about weirs."}]
SAMPLING = {"temperature": 0, "stream": True}
REFERENCE = "chat"


class Api(NamedTuple):
    """How an API is called."""

    path: str
    body: Mapping[str, Any]
    limit: str
    """The field with the most tokens."""
    usage: str
    """The field of the usage with the number of generated tokens."""


APIS = {
    "chat": Api(
        "/v1/chat/completions",
        {
            "messages": MESSAGES,
            "ignore_eos": True,
            "stream_options": {"include_usage": True},
            **SAMPLING,
        },
        "max_tokens",
        "completion_tokens",
    ),
    "responses": Api(
        "/v1/responses",
        {"input": MESSAGES, "ignore_eos": True, "store": False, **SAMPLING},
        "max_output_tokens",
        "output_tokens",
    ),
    "responses, stored": Api(
        "/v1/responses",
        {"input": MESSAGES, "ignore_eos": True, **SAMPLING},
        "max_output_tokens",
        "output_tokens",
    ),
    "messages": Api(
        "/v1/messages",
        {"messages": MESSAGES, "model": "demo", "ignore_eos": True, **SAMPLING},
        "max_tokens",
        "output_tokens",
    ),
}


class Round(NamedTuple):
    """Figures of one round of one API."""

    first_event_ms: float
    """Median over the requests, which are sent one after another on each connection."""
    cpu_us_per_token: float


def request_of(api: Api, url: str, num_tokens: int) -> bytes:
    """The HTTP request for a stream of exactly `num_tokens`."""
    payload = json.dumps({**api.body, api.limit: num_tokens}).encode()
    head = (
        f"POST {api.path} HTTP/1.1\r\nhost: {urlsplit(url).netloc}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(payload)}\r\n\r\n"
    )
    return head.encode() + payload


async def load(url: str, api: Api, streams: int, turns: int, num_tokens: int) -> list[Stream]:
    """Read `turns` streams one after another on each of `streams` connections."""
    request = request_of(api, url, num_tokens)
    connections = [await connect(url) for _ in range(streams)]

    async def client(number: int) -> list[Stream]:
        read = connections[number].read
        return [await read(request, num_tokens, api.usage) for _ in range(turns)]

    try:
        answers = await asyncio.gather(*map(client, range(streams)))
    finally:
        for connection in connections:
            connection.transport.close()
    return [stream for of_client in answers for stream in of_client]


def measure(services: Services, api: Api, options: argparse.Namespace) -> Round:
    """One round: single streams for the first event, then many for the CPU time."""
    alone = uvloop.run(load(services.url, api, 1, options.requests, 4))
    before = services.cpu_seconds(COUNTED)
    many = uvloop.run(load(services.url, api, options.streams, 1, options.tokens))
    used = services.cpu_seconds(COUNTED) - before
    failed = [stream.error for stream in (*alone, *many) if stream.error]
    assert not failed, failed
    total = sum(stream.num_tokens for stream in many)
    return Round(percentile([s.ttft for s in alone], 50) * 1e3, used / total * 1e6)


def run(services: Services, options: argparse.Namespace) -> dict[str, list[Round]]:
    """All rounds by API; the order is reversed after each round."""
    names = [name for name in APIS if name in options.apis]
    rounds: dict[str, list[Round]] = {name: [] for name in names}
    for number in range(-1, options.rounds):  # round -1 warms up
        for name in names:
            found = measure(services, APIS[name], options)
            print(f"round {number + 1}, {name}: {found}", flush=True)
            if number >= 0:
                rounds[name].append(found)
        names.reverse()
    return rounds


def ratios(values: Sequence[float], reference: Sequence[float]) -> float:
    """The median of the ratios of one round each."""
    return statistics.median(a / b for a, b in zip(values, reference, strict=True))


def summary(rounds: Mapping[str, Sequence[Round]]) -> list[dict[str, Any]]:
    """The figures of each API, and their ratios to the reference."""
    rows = []
    for name, found in rounds.items():
        row: dict[str, Any] = {"api": name}
        for field in Round._fields:
            values = [getattr(each, field) for each in found]
            row[field] = statistics.median(values)
            reference = [getattr(each, field) for each in rounds.get(REFERENCE, found)]
            row[f"{field}_ratio"] = ratios(values, reference)
        rows.append(row)
    return rows


def main() -> None:
    """Measure, print the figures, and write them to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--apis", nargs="+", choices=list(APIS), default=list(APIS))
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Processes(Path(folder) / "log") as processes:
        services = Services(processes, engine=FAKE_MODEL, limits=LIMITS)
        services.wait_ready()
        rows = summary(run(services, options))
    print(json.dumps(rows, indent=2))
    if options.out is not None:
        options.out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
