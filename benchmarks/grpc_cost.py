"""Cost of bare grpc.aio, without mesh, with gRPC's EventEngine and with its epoll1 engine.

    python -m benchmarks.grpc_cost --out docs/benchmarks/grpc_cost.json

A server and a client process exchange messages of 40 bytes. The CPU time is that of the whole
process at each end; the latency is that of one call. The result is a lower bound of the relay's
cost: a request is one call of the tokenizer and two streams, of the engine and of the
orchestrator, plus HTTP.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import uvloop

ENGINES = {
    "event_engine": "event_engine_client,event_engine_listener",
    "epoll1": "-event_engine_client,-event_engine_listener",
}
MESSAGE = b"x" * 40
SERVICE = "Bare"
MESSAGES = (1, 4, 16)
Figures = dict[str, float]


def cpu_seconds() -> float:
    """CPU time of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def serve() -> None:
    """Prints its port and serves until it is killed."""

    async def stream(request: bytes, context: Any) -> None:
        for _ in range(int(request)):
            await context.write(MESSAGE)

    async def unary(request: bytes, context: Any) -> bytes:
        return request

    async def used(request: bytes, context: Any) -> bytes:
        return str(cpu_seconds()).encode()

    handlers = {
        "Stream": grpc.unary_stream_rpc_method_handler(stream),  # type: ignore[arg-type]
        "Unary": grpc.unary_unary_rpc_method_handler(unary),  # type: ignore[arg-type]
        "Used": grpc.unary_unary_rpc_method_handler(used),  # type: ignore[arg-type]
    }
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()


async def call(port: int, num_calls: int, num_at_once: int) -> None:
    """Makes the calls; prints the figures as JSON, in milliseconds per call."""
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    unary = channel.unary_unary(f"/{SERVICE}/Unary")
    used = channel.unary_unary(f"/{SERVICE}/Used")
    opened = channel.unary_stream(f"/{SERVICE}/Stream")

    async def stream(num_messages: int) -> None:
        responses = opened(str(num_messages).encode())
        while await responses.read() is not grpc.aio.EOF:
            pass

    async def measure(one: Callable[[], Awaitable[object]]) -> Figures:
        async def worker(number: int) -> None:
            for _ in range(number):
                await one()

        await asyncio.gather(*(worker(5) for _ in range(num_at_once)))
        servers, ours, began = float(await used(b"")), cpu_seconds(), time.perf_counter()
        each = num_calls // num_at_once
        await asyncio.gather(*(worker(each) for _ in range(num_at_once)))
        seconds, ours = time.perf_counter() - began, cpu_seconds() - ours
        servers = float(await used(b"")) - servers
        total = each * num_at_once
        return {
            "client_cpu_ms": ours / total * 1e3,
            "server_cpu_ms": servers / total * 1e3,
            "latency_ms": seconds / each * 1e3,
        }

    found = {"unary": await measure(lambda: unary(MESSAGE))}
    for number in MESSAGES:
        found[f"stream of {number}"] = await measure(lambda number=number: stream(number))  # type: ignore[misc]
    await channel.close()
    print(json.dumps(found))


def run(engine: str, num_calls: int, num_at_once: int) -> dict[str, Figures]:
    """Runs one round with one engine."""
    command = [sys.executable, "-m", "benchmarks.grpc_cost"]
    environment = {**os.environ, "GRPC_EXPERIMENTS": ENGINES[engine]}
    with subprocess.Popen(
        [*command, "--serve"], stdout=subprocess.PIPE, text=True, env=environment
    ) as server:
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        try:
            options = ("--port", port, "--calls", str(num_calls), "--at-once", str(num_at_once))
            printed = subprocess.check_output([*command, *options], text=True, env=environment)
        finally:
            server.kill()
    figures: dict[str, Figures] = json.loads(printed)
    return figures


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--out", type=Path, help="JSON file for all figures")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 32])
    options = parser.parse_args()
    if options.serve:
        uvloop.run(serve())
    elif options.port:
        uvloop.run(call(options.port, options.calls, options.at_once[0]))
    else:
        _compare(options)


def _compare(options: argparse.Namespace) -> None:
    rows = []
    for num_at_once in options.at_once:
        rounds: dict[str, list[dict[str, Figures]]] = {engine: [] for engine in ENGINES}
        for number in range(options.rounds):
            order = list(ENGINES) if number % 2 else list(reversed(ENGINES))
            for engine in order:
                rounds[engine].append(run(engine, options.calls, num_at_once))
        for kind in rounds["event_engine"][0]:
            row: dict[str, Any] = {"call": kind, "at_once": num_at_once}
            for engine, found in rounds.items():
                for name in found[0][kind]:
                    row[f"{engine}_{name}"] = statistics.median(each[kind][name] for each in found)
            rows.append(row)
    print("| call | at once | client CPU ms, EventEngine / epoll1 | server CPU ms | latency ms |")
    print("|---|---|---|---|---|")
    for row in rows:
        pairs = (
            f"{row[f'event_engine_{name}']:.2f} / {row[f'epoll1_{name}']:.2f}"
            for name in ("client_cpu_ms", "server_cpu_ms", "latency_ms")
        )
        print(f"| {row['call']} | {row['at_once']} | {' | '.join(pairs)} |")
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
