"""What the mesh adds to a real engine: gateway, orchestrator and tokenizer against gRPC to it.

    python -m benchmarks.overhead --out docs/benchmarks/overhead.json

Random weights of SmolLM2-135M's shape. So many clients ask for one answer after another, each
from a moment of its own on, so that the engine is never empty and soon full; both ways take turns,
round after round. The time to the first token is a client's less the engine's own for the same
requests, from its metrics: what waits for other sequences and for the prefill is the engine's in
both ways. The engine has one thread, so that on two cores the mesh has one as well.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import uvloop

from benchmarks import make_model
from benchmarks.harness.processes import Processes
from benchmarks.harness.sse_load import Stream, completion_request, connect
from benchmarks.harness.stack import Services
from mesh.rpc.channel import open_channel, open_stream
from mesh.v1 import common_pb2, inference_pb2, inference_pb2_grpc

MODEL = "random"
VOCABULARY = range(3, 49_152)
ENGINE_TTFT = "vllm:time_to_first_token_seconds"

Ask = Callable[[list[int]], Awaitable[Stream]]


class Way(NamedTuple):
    """How one round of one way went; milliseconds, medians over its requests but the first."""

    added_ttft_ms: float
    token_interval_ms: float


async def run(services: Services, asks: list[Ask], options: argparse.Namespace, seed: int) -> Way:
    """One client for each of `asks`, which begin within `options.spread` seconds."""
    draw = random.Random(seed)
    before = [services.sample("inference", f"{ENGINE_TTFT}_{what}") for what in ("sum", "count")]

    async def client(number: int) -> list[Stream]:
        await asyncio.sleep(number / len(asks) * (options.spread or 0.0))
        prompts = [draw.choices(VOCABULARY, k=options.prompt) for _ in range(options.requests)]
        return [await asks[number](prompt) for prompt in prompts]

    streams = [s for own in await asyncio.gather(*map(client, range(len(asks)))) for s in own]
    failed = [stream.error for stream in streams if stream.error]
    assert not failed, failed
    after = [services.sample("inference", f"{ENGINE_TTFT}_{what}") for what in ("sum", "count")]
    total, count = (b - a for a, b in zip(before, after, strict=True))
    assert count == len(streams), f"{count} of {len(streams)} requests are in the metrics"
    intervals = [(s.total - s.ttft) / (s.num_tokens - 1) for s in streams]
    return Way(
        (statistics.fmean(s.ttft for s in streams) - total / count) * 1e3,
        statistics.median(intervals) * 1e3,
    )


async def through_mesh(services: Services, options: argparse.Namespace, seed: int) -> Way:
    """HTTP to the gateway."""
    connections = [await connect(services.url) for _ in range(options.streams)]

    def ask(number: int) -> Ask:
        async def one(prompt: list[int]) -> Stream:
            request = completion_request(services.url, options.output, prompt, MODEL)
            return await connections[number].read(request, options.output)

        return one

    try:
        return await run(services, [ask(n) for n in range(options.streams)], options, seed)
    finally:
        for connection in connections:
            connection.transport.close()


async def to_engine(services: Services, options: argparse.Namespace, seed: int) -> Way:
    """gRPC to the inference service, as the orchestrator calls it."""
    channel = open_channel(services.addresses["inference"])
    stub = inference_pb2_grpc.InferenceServiceStub(channel)
    sampling = common_pb2.SamplingParams(
        max_tokens=options.output, temperature=0.0, ignore_eos=True
    )

    async def ask(prompt: list[int]) -> Stream:
        request = inference_pb2.InferenceServiceGenerateRequest(token_ids=prompt, sampling=sampling)
        stream, began = Stream(), time.perf_counter()
        async with open_stream(stub.Generate, request, timeout=600) as responses:
            async for response in responses:
                stream.num_tokens += len(response.chunk.token_ids)
                if not stream.ttft and stream.num_tokens:
                    stream.ttft = time.perf_counter() - began
        stream.total = time.perf_counter() - began
        return stream

    try:
        return await run(services, [ask] * options.streams, options, seed)
    finally:
        await channel.close()


def report(direct: list[Way], mesh: list[Way]) -> str:
    """Medians over the rounds; differences and ratios are of the same round."""
    ttft = statistics.median(
        m.added_ttft_ms - d.added_ttft_ms for d, m in zip(direct, mesh, strict=True)
    )
    ratio = statistics.median(
        m.token_interval_ms / d.token_interval_ms for d, m in zip(direct, mesh, strict=True)
    )
    lines = ["| way | TTFT beyond the engine's own, ms | between two tokens, ms |", "|---|---|---|"]
    for name, ways in (("gRPC to the engine", direct), ("HTTP through the mesh", mesh)):
        cells = (statistics.median(values) for values in zip(*ways, strict=True))
        lines.append(f"| {name} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")
    return "\n".join(
        [*lines, f"\nThe mesh adds {ttft:.2f} ms to TTFT and {ratio - 1:+.1%} between tokens."]
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=64, help="tokens")
    parser.add_argument("--output", type=int, default=64, help="tokens")
    parser.add_argument("--requests", type=int, default=4, help="of each client in a round")
    parser.add_argument(
        "--spread", type=float, help="seconds in which clients begin; else what an answer takes"
    )
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--model", type=Path, help="a folder; else random SmolLM2-135M is made")
    parser.add_argument("--out", type=Path, help="where every figure goes, as JSON")
    parser.add_argument("--log", type=Path, help="where the processes' output goes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or Path(folder) / "model"
        if options.model is None:
            make_model.make(model, "smollm2-135m")
        engine = ("--threads", "1", "--dtype", "int8", "--kv-cache-tokens", "65536")
        log = options.log or Path(folder) / "processes.log"
        with Processes(log) as processes:
            services = Services(
                processes,
                engine=("--model", str(model), "--model-name", MODEL, *engine),
                limits={"tokenizer": ("--model", str(model))},
            )
            services.wait_ready()
            direct: list[Way] = []
            mesh: list[Way] = []
            ways = [(direct, to_engine), (mesh, through_mesh)]
            for number in range(-1, options.rounds):  # the first one warms up
                for found, ask in ways:
                    # Prompts of its own each: the prefix cache would spare the second way work.
                    way = uvloop.run(ask(services, options, random.getrandbits(32)))
                    print(f"round {number + 1}, {ask.__name__}: {way}", flush=True)
                    if number >= 0:
                        found.append(way)
                ways.reverse()
                if options.spread is None:
                    # Over as long as an answer takes requests go on coming one by one, and soon
                    # all streams are there.
                    options.spread = options.output * way.token_interval_ms / 1e3
    print(report(direct, mesh))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        rounds = {"direct": [w._asdict() for w in direct], "mesh": [w._asdict() for w in mesh]}
        options.out.write_text(json.dumps(rounds, indent=1) + "\n")


if __name__ == "__main__":
    main()
