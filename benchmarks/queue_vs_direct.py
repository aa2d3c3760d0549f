"""The older shape with a queue against the direct way: what each adds to calling the engine alone.

    python -m benchmarks.queue_vs_direct --out docs/benchmarks/queue_vs_direct.json

One engine, one tokenizer and one redis-server serve all shapes; the client is the same code, in
the gateway's place. In each round the shapes take turns in a random order at each number of
clients, so that what the machine does meanwhile falls on all alike. A shape's percentile less
the engine's own in the same round is what the shape adds; the median over rounds is reported.

    alone    client ─▶ inference                                     (ids encoded before)
    direct   client ─▶ orchestrator ─▶ tokenizer, inference
    queue-N  client ─▶ LLM service ─▶ tokenizer, Redis ─▶ N workers ─▶ inference,
             and every chunk back over Redis
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.harness.percentile import percentile
from benchmarks.harness.processes import Processes, free_port
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

PERCENTILES = (50, 95, 99)
POOLS = (4, 32)
PROMPTS = tuple(f"The {word} is" for word in "river city law star bread engine song map".split())

Ask = Callable[[int], Awaitable[tuple[float, float]]]
"""Makes one request with the prompt of a number; gives seconds to the first token and in all."""


@dataclass
class Phase:
    """One shape at one number of clients in one round."""

    shape: str
    clients: int
    ttft: list[float] = field(default_factory=list)
    end_to_end: list[float] = field(default_factory=list)
    num_errors: int = 0
    cpu_seconds: float = 0.0
    memory_bytes: int = 0


class Stack:
    """All shapes, running."""

    def __init__(self, arguments: argparse.Namespace, log: Path) -> None:
        self._arguments = arguments
        self.processes = Processes(log)
        self.parts: dict[str, tuple[str, ...]] = {"alone": (), "direct": ("orchestrator",)}
        self.ask: dict[str, Ask] = {}
        self._max_tokens: int = arguments.max_tokens

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Stack]:
        """Starts everything; channels and processes end with the block."""
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
        self.ask["alone"] = self._ask_engine(channels["inference"], ids)
        for shape, name in (("direct", "orchestrator"), *((f"queue-{n}",) * 2 for n in POOLS)):
            self.ask[shape] = self._ask_service(channels[name])
            await self._wait_ready(shape)

    async def _wait_ready(self, shape: str) -> None:
        """Until an answer comes: an orchestrator must have found its engine first."""
        for _ in range(300):
            try:
                await self.ask[shape](0)
                return
            except MeshError:
                await asyncio.sleep(0.2)
        raise RuntimeError(f"{shape} never answered")

    def _sampling(self) -> common_pb2.SamplingParams:
        return common_pb2.SamplingParams(
            max_tokens=self._max_tokens, temperature=0.0, ignore_eos=True
        )

    def _ask_engine(self, channel: Any, ids: list[list[int]]) -> Ask:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)

        async def ask(number: int) -> tuple[float, float]:
            request = inference_pb2.InferenceServiceGenerateRequest(
                token_ids=ids[number % len(ids)], sampling=self._sampling()
            )
            return await _timed(
                stub.Generate, request, lambda response: bool(response.chunk.token_ids)
            )

        return ask

    def _ask_service(self, channel: Any) -> Ask:
        stub = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)

        async def ask(number: int) -> tuple[float, float]:
            request = orchestrator_pb2.GenerateRequest(
                text=PROMPTS[number % len(PROMPTS)], sampling=self._sampling()
            )
            return await _timed(stub.Generate, request, lambda r: r.HasField("delta"))

        return ask

    async def phase(self, shape: str, clients: int, requests: int) -> Phase:
        """So many clients, each with so many requests one after another."""
        phase, parts = Phase(shape, clients), self.parts[shape]
        before = self.processes.cpu_seconds(*parts)

        async def client(number: int) -> None:
            for turn in range(requests):
                try:
                    ttft, total = await self.ask[shape](number * requests + turn)
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
    assert finished, "a stream without a finish"
    return first, time.perf_counter() - began


def added(phases: Sequence[Phase], rounds: int, shape: str, clients: int) -> dict[str, Any]:
    """What a shape adds over the engine alone, each percentile's median over the rounds."""
    of = {
        (each.shape, round_): each
        for name in (shape, "alone")
        for round_, each in enumerate(p for p in phases if (p.shape, p.clients) == (name, clients))
    }
    row: dict[str, Any] = {"shape": shape, "clients": clients}
    for kind in ("ttft", "end_to_end"):
        for percent in PERCENTILES:
            differences = [
                percentile(getattr(of[shape, number], kind), percent)
                - percentile(getattr(of["alone", number], kind), percent)
                for number in range(rounds)
            ]
            row[f"added_{kind}_p{percent}_ms"] = 1e3 * statistics.median(differences)
    mine = [of[shape, number] for number in range(rounds)]
    num_requests = sum(len(each.ttft) for each in mine)
    row["errors"] = sum(each.num_errors for each in mine)
    row["cpu_ms_per_request"] = 1e3 * sum(e.cpu_seconds for e in mine) / max(1, num_requests)
    row["memory_mib"] = max(each.memory_bytes for each in mine) / 2**20
    return row


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows in Markdown, and how much less the direct way adds."""
    lines = [
        "| clients | shape | added TTFT p50 / p95 / p99 ms | added end-to-end p50 / p95 / p99 ms "
        "| errors | CPU ms/request | memory MiB | direct adds less TTFT (p50) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    direct = {row["clients"]: row for row in rows if row["shape"] == "direct"}
    for row in rows:
        cells = [
            " / ".join(f"{row[f'added_{kind}_p{percent}_ms']:.2f}" for percent in PERCENTILES)
            for kind in ("ttft", "end_to_end")
        ]
        mine, theirs = direct[row["clients"]]["added_ttft_p50_ms"], row["added_ttft_p50_ms"]
        less = "" if row["shape"] == "direct" or theirs <= 0 else f"{1 - mine / theirs:.0%}"
        lines.append(
            f"| {row['clients']} | {row['shape']} | {cells[0]} | {cells[1]} | {row['errors']} "
            f"| {row['cpu_ms_per_request']:.2f} | {row['memory_mib']:.0f} | {less} |"
        )
    return "\n".join(lines)


async def measure(arguments: argparse.Namespace) -> tuple[list[Phase], list[dict[str, Any]]]:
    """All rounds."""
    order, phases = random.Random(arguments.seed), []
    with tempfile.TemporaryDirectory() as folder:
        log = arguments.log or Path(folder) / "processes.log"
        async with Stack(arguments, log).running() as stack:
            shapes = list(stack.ask)
            for shape in shapes:  # caches and connections are warm for all alike
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
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--requests", type=int, default=10, help="of each client in a phase")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1, help="of the order of the shapes")
    parser.add_argument("--fake-model", action="store_true", help="an engine that costs nothing")
    parser.add_argument("--tokens-per-second", type=float, default=40, help="of a fake stream")
    parser.add_argument("--out", type=Path, help="where every figure goes, as JSON")
    parser.add_argument("--log", type=Path, help="where the processes' output goes")
    arguments = parser.parse_args()
    phases, rows = uvloop.run(measure(arguments))
    print(f"\n{platform.machine()}, Python {platform.python_version()}\n\n{table(rows)}")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        figures = {"rows": rows, "phases": [asdict(phase) for phase in phases]}
        arguments.out.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
