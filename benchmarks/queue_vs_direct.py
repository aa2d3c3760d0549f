"""Latency that a Redis queue architecture and Weir's direct streams add to the engine's own.

    python -m benchmarks.queue_vs_direct --out docs/benchmarks/queue_vs_direct.json

All architectures share one engine and one tokenizer; each queue has its own redis-server. The
client is the same code, in the place of the gateway. In each round, and for each number of clients,
the architectures run in random order, so that other load on the machine affects all alike. The
added latency is a percentile of the architecture minus the same percentile of the engine alone, in
the same round; the median over the rounds is reported.

    alone    client ─▶ inference                          (the prompts are encoded beforehand)
    direct   client ─▶ orchestrator ─▶ tokenizer, inference
    queue-N  client ─▶ LLM service ─▶ tokenizer, Redis ─▶ N workers ─▶ inference,
             and every chunk back over Redis
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.harness.processes import Processes, free_port
from benchmarks.queue_shape.report import Phase, added, summary, table
from mesh.errors import MeshError
from mesh.rpc.channel import call_unary, open_channel, open_stream
from mesh.v1 import (
    common_pb2,
    inference_pb2,
    inference_pb2_grpc,
    orchestrator_pb2,
    orchestrator_pb2_grpc,
    tokenizer_pb2,
    tokenizer_pb2_grpc,
)

POOLS = (4, 32)
PROMPTS = tuple(f"The {word} is" for word in "river city law star bread engine song map".split())

SendRequest = Callable[[int], Awaitable[tuple[float, float]]]
"""Sends request N; returns the seconds to its first token, and to its end."""


class Stack:
    """The processes of all architectures, and a way to send requests to each."""

    def __init__(self, arguments: argparse.Namespace, log: Path) -> None:
        self._arguments = arguments
        self.processes = Processes(log)
        self.parts: dict[str, tuple[str, ...]] = {"alone": (), "direct": ("orchestrator",)}
        self.send: dict[str, SendRequest] = {}
        self._max_tokens: int = arguments.max_tokens

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Stack]:
        """Starts the processes; closes the channels and ends the processes with the block."""
        with self.processes:
            ports = await asyncio.to_thread(self._start)
            channels = {name: open_channel(f"127.0.0.1:{port}") for name, port in ports.items()}
            try:
                await self._connect(channels)
                yield self
            finally:
                for channel in channels.values():
                    await channel.close()

    def _start(self) -> dict[str, int]:
        names = ("tokenizer", "inference", "orchestrator", *(f"queue-{n}" for n in POOLS))
        ports = {name: free_port() for name in names}
        start, arguments = self.processes.python, self._arguments
        quiet = ("--metrics-listen", "127.0.0.1:0", "--log-level", "WARNING")
        where = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
        start("tokenizer", "tokenizer", "--listen", where["tokenizer"], *quiet)
        engine = ["--max-num-seqs", "64", "--max-num-waiting", "256"]
        if arguments.fake_model:
            rate = str(arguments.tokens_per_second)
            engine += ["--fake-model", "--fake-tokens-per-second", rate, "--model-name", "demo"]
        start("inference", "inference", "--listen", where["inference"], *engine, *quiet)
        for name in ("tokenizer", "inference"):
            self.processes.wait_port(name, ports[name])
        upstreams = {"TOKENIZER_HOST": where["tokenizer"], "INFERENCE_HOST": where["inference"]}
        limit = ("--max-concurrent-requests", "256")
        direct = ("orchestrator", "--listen", where["orchestrator"], *limit, *quiet)
        start("orchestrator", *direct, environment=upstreams)
        self.processes.wait_port("orchestrator", ports["orchestrator"])
        for number in POOLS:
            self._start_queue(number, ports[f"queue-{number}"], where, quiet)
        return ports

    def _start_queue(
        self, workers: int, port: int, where: dict[str, str], quiet: tuple[str, ...]
    ) -> None:
        shape = f"queue-{workers}"
        redis_port = free_port()
        redis = ["redis-server", "--port", str(redis_port), "--save", "", "--appendonly", "no"]
        self.processes.start(f"{shape} redis", [*redis, "--bind", "127.0.0.1"])
        self.processes.wait_port(f"{shape} redis", redis_port)
        environment = {
            "QUEUE_REDIS_PORT": str(redis_port),
            "QUEUE_TOKENIZER_TARGET": where["tokenizer"],
            "QUEUE_INFERENCE_TARGET": where["inference"],
            "QUEUE_WORKERS": str(workers),
        }
        start = self.processes.python
        service = ("benchmarks.queue_shape.llm_service", "--listen", where[shape], *quiet)
        start(f"{shape} service", *service, environment=environment)
        start(f"{shape} workers", "benchmarks.queue_shape.worker", environment=environment)
        self.processes.wait_port(f"{shape} service", port)
        self.parts[shape] = (f"{shape} service", f"{shape} workers", f"{shape} redis")

    async def _connect(self, channels: dict[str, Any]) -> None:
        tokenizer = tokenizer_pb2_grpc.TokenizerServiceStub(channels["tokenizer"])
        ids = []
        for prompt in PROMPTS:
            request = tokenizer_pb2.EncodeRequest(text=prompt, add_special_tokens=True)
            ids.append(list((await call_unary(tokenizer.Encode, request)).token_ids))
        self.send["alone"] = self._engine_sender(channels["inference"], ids)
        for shape, name in (("direct", "orchestrator"), *((f"queue-{n}",) * 2 for n in POOLS)):
            self.send[shape] = self._service_sender(channels[name])
            await self._wait_ready(shape)

    async def _wait_ready(self, shape: str) -> None:
        """Retries until a request succeeds: the orchestrator must discover its engine first."""
        for _ in range(300):
            try:
                await self.send[shape](0)
                return
            except MeshError:
                await asyncio.sleep(0.2)
        raise RuntimeError(f"{shape} does not answer")

    def _sampling(self) -> common_pb2.SamplingParams:
        return common_pb2.SamplingParams(
            max_tokens=self._max_tokens, temperature=0.0, ignore_eos=True
        )

    def _engine_sender(self, channel: Any, ids: list[list[int]]) -> SendRequest:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)

        async def send(number: int) -> tuple[float, float]:
            request = inference_pb2.InferenceServiceGenerateRequest(
                token_ids=ids[number % len(ids)], sampling=self._sampling()
            )
            return await _timed(
                stub.Generate, request, lambda response: bool(response.chunk.token_ids)
            )

        return send

    def _service_sender(self, channel: Any) -> SendRequest:
        stub = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)

        async def send(number: int) -> tuple[float, float]:
            request = orchestrator_pb2.GenerateRequest(
                text=PROMPTS[number % len(PROMPTS)], sampling=self._sampling()
            )
            return await _timed(stub.Generate, request, lambda r: r.HasField("delta"))

        return send

    async def phase(self, shape: str, clients: int, requests: int) -> Phase:
        """Runs concurrent clients, each of which sends its requests one after another."""
        phase, parts = Phase(shape, clients), self.parts[shape]
        before = self.processes.cpu_seconds(*parts)

        async def client(number: int) -> None:
            for turn in range(requests):
                try:
                    ttft, total = await self.send[shape](number * requests + turn)
                except MeshError:
                    phase.num_errors += 1
                    continue
                phase.ttft.append(ttft)
                phase.end_to_end.append(total)

        await asyncio.gather(*map(client, range(clients)))
        phase.cpu_seconds = self.processes.cpu_seconds(*parts) - before
        phase.memory_bytes = self.processes.memory_bytes(*parts)
        return phase


async def _timed(method: Any, request: Any, is_first: Callable[[Any], bool]) -> tuple[float, float]:
    began = time.perf_counter()
    first = 0.0
    finished = False
    async with open_stream(method, request, timeout=600) as responses:
        async for response in responses:
            if not first and is_first(response):
                first = time.perf_counter() - began
            finished = finished or response.HasField("finish")
    assert finished, "the stream ended without a finish"
    return first, time.perf_counter() - began


async def measure(arguments: argparse.Namespace) -> tuple[list[Phase], list[dict[str, Any]]]:
    """Runs all rounds; returns the phases, and a row for each shape and number of clients."""
    order, phases = random.Random(arguments.seed), []
    with tempfile.TemporaryDirectory() as folder:
        log = arguments.log or Path(folder) / "processes.log"
        async with Stack(arguments, log).running() as stack:
            shapes = list(stack.send)
            for shape in shapes:  # warms up caches and connections
                await stack.phase(shape, max(arguments.clients), 1)
            for number in range(arguments.rounds):
                for clients in arguments.clients:
                    order.shuffle(shapes)
                    for shape in shapes:
                        phases.append(await stack.phase(shape, clients, arguments.requests))
                        print(f"round {number + 1}: {shape} at {clients} clients", flush=True)
    rows = [
        added(phases, arguments.rounds, shape, clients)
        for clients in arguments.clients
        for shape in ("direct", *(f"queue-{n}" for n in POOLS))
    ]
    return phases, rows


def main() -> None:
    """Measures, prints the table, and writes the summary to `--out`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--clients", type=int, nargs="+", default=[1, 8, 32, 64], help="numbers of clients"
    )
    parser.add_argument("--requests", type=int, default=10, help="requests of a client in a phase")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=64, help="completion length, in tokens")
    parser.add_argument("--seed", type=int, default=1, help="seed of the order of architectures")
    parser.add_argument("--fake-model", action="store_true", help="use the fake engine")
    parser.add_argument(
        "--tokens-per-second", type=float, default=40, help="rate of a stream of the fake engine"
    )
    parser.add_argument("--out", type=Path, help="JSON file for the summary")
    parser.add_argument("--log", type=Path, help="file for the output of the services")
    arguments = parser.parse_args()
    phases, rows = uvloop.run(measure(arguments))
    print(f"\n{platform.machine()}, Python {platform.python_version()}\n\n{table(rows)}")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        report = {
            "command": " ".join(["python -m benchmarks.queue_vs_direct", *sys.argv[1:]]),
            "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
            "python": platform.python_version(),
            "rounds": arguments.rounds,
            "rows": rows,
            "percentiles": summary(phases),
        }
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
