"""Latency that the mesh adds to a real engine, compared with gRPC directly to the engine.

    python -m benchmarks.overhead --out docs/benchmarks/overhead.json

The engine runs random weights of SmolLM2-135M's shape. Each client sends its requests one after
another, and the clients start at staggered times, so that the engine is never empty and soon full.
The two paths alternate, round after round. The added time to the first token (TTFT) is the mean
TTFT at the client minus the mean TTFT that the engine's own metrics report for the same requests:
the wait for other sequences and for the prefill cancels out. The engine has one thread, so that on
a machine of two cores one core is left for the mesh.
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

SendRequest = Callable[[list[int]], Awaitable[Stream]]


class Round(NamedTuple):
    """Figures of one round over one path, in milliseconds."""

    added_ttft_ms: float
    """Mean over the requests, without the engine's own TTFT."""
    token_interval_ms: float
    """Median over the requests."""


async def run(
    services: Services, senders: list[SendRequest], options: argparse.Namespace, seed: int
) -> Round:
    """Runs one client for each of `senders`; the clients start within `options.spread` seconds."""
    rng = random.Random(seed)
    before = [services.sample("inference", f"{ENGINE_TTFT}_{part}") for part in ("sum", "count")]

    async def client(number: int) -> list[Stream]:
        await asyncio.sleep(number / len(senders) * (options.spread or 0.0))
        prompts = [rng.choices(VOCABULARY, k=options.prompt) for _ in range(options.requests)]
        return [await senders[number](prompt) for prompt in prompts]

    answers = await asyncio.gather(*map(client, range(len(senders))))
    streams = [stream for of_client in answers for stream in of_client]
    failed = [stream.error for stream in streams if stream.error]
    assert not failed, failed
    after = [services.sample("inference", f"{ENGINE_TTFT}_{part}") for part in ("sum", "count")]
    total, count = (b - a for a, b in zip(before, after, strict=True))
    assert count == len(streams), f"the metrics count {count} of {len(streams)} requests"
    intervals = [(s.total - s.ttft) / (s.num_tokens - 1) for s in streams]
    return Round(
        (statistics.fmean(s.ttft for s in streams) - total / count) * 1e3,
        statistics.median(intervals) * 1e3,
    )


async def through_mesh(services: Services, options: argparse.Namespace, seed: int) -> Round:
    """One round of HTTP requests to the gateway."""
    connections = [await connect(services.url) for _ in range(options.streams)]

    def sender(number: int) -> SendRequest:
        async def send(prompt: list[int]) -> Stream:
            request = completion_request(services.url, options.output, prompt, MODEL)
            return await connections[number].read(request, options.output)

        return send

    try:
        return await run(services, [sender(n) for n in range(options.streams)], options, seed)
    finally:
        for connection in connections:
            connection.transport.close()


async def to_engine(services: Services, options: argparse.Namespace, seed: int) -> Round:
    """One round of gRPC calls to the inference service, the same calls as the orchestrator's."""
    channel = open_channel(services.addresses["inference"])
    stub = inference_pb2_grpc.InferenceServiceStub(channel)
    sampling = common_pb2.SamplingParams(
        max_tokens=options.output, temperature=0.0, ignore_eos=True
    )

    async def send(prompt: list[int]) -> Stream:
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
        return await run(services, [send] * options.streams, options, seed)
    finally:
        await channel.close()


def alternate(services: Services, options: argparse.Namespace) -> tuple[list[Round], list[Round]]:
    """Runs `options.rounds` rounds over each path, in turn; returns (direct, mesh)."""
    direct: list[Round] = []
    mesh: list[Round] = []
    paths = [(direct, to_engine), (mesh, through_mesh)]
    for number in range(-1, options.rounds):  # round -1 warms up
        for rounds, path in paths:
            # A new seed for each: the prefix cache would serve repeated prompts.
            found = uvloop.run(path(services, options, random.getrandbits(32)))
            print(f"round {number + 1}, {path.__name__}: {found}", flush=True)
            if number >= 0:
                rounds.append(found)
        paths.reverse()
        if options.spread is None:
            # Clients that start over the length of one answer keep the arrivals spread out.
            options.spread = options.output * found.token_interval_ms / 1e3
    return direct, mesh


def measure(options: argparse.Namespace, folder: Path) -> tuple[list[Round], list[Round]]:
    """Starts the services, with their files in `folder`, and measures both paths."""
    model = options.model or folder / "model"
    if options.model is None:
        make_model.make(model, "smollm2-135m")
    engine = ("--threads", "1", "--dtype", "int8", "--kv-cache-tokens", "65536")
    with Processes(options.log or folder / "processes.log") as processes:
        services = Services(
            processes,
            engine=("--model", str(model), "--model-name", MODEL, *engine),
            limits={"tokenizer": ("--model", str(model))},
        )
        services.wait_ready()
        return alternate(services, options)


def report(direct: list[Round], mesh: list[Round]) -> str:
    """A Markdown table of medians; differences and ratios are taken within each round."""
    ttft = statistics.median(
        m.added_ttft_ms - d.added_ttft_ms for d, m in zip(direct, mesh, strict=True)
    )
    ratio = statistics.median(
        m.token_interval_ms / d.token_interval_ms for d, m in zip(direct, mesh, strict=True)
    )
    lines = [
        "| path | TTFT beyond the engine's own, ms | between two tokens, ms |",
        "|---|---|---|",
    ]
    for name, rounds in (("gRPC to the engine", direct), ("HTTP through the mesh", mesh)):
        cells = (statistics.median(values) for values in zip(*rounds, strict=True))
        lines.append(f"| {name} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")
    return "\n".join(
        [*lines, f"\nThe mesh adds {ttft:.2f} ms to TTFT and {ratio - 1:+.1%} between tokens."]
    )


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--streams", type=int, default=32, help="concurrent clients")
    parser.add_argument("--prompt", type=int, default=64, help="prompt length, in tokens")
    parser.add_argument("--output", type=int, default=64, help="completion length, in tokens")
    parser.add_argument("--requests", type=int, default=4, help="requests of a client in a round")
    parser.add_argument(
        "--spread",
        type=float,
        help="seconds over which the clients start; default: the duration of one answer",
    )
    parser.add_argument("--rounds", type=int, default=6, help="measured rounds of each path")
    parser.add_argument(
        "--model", type=Path, help="model folder; default: a random SmolLM2-135M, made for the run"
    )
    parser.add_argument("--out", type=Path, help="JSON file for all figures")
    parser.add_argument("--log", type=Path, help="file for the output of the services")
    return parser.parse_args()


def main() -> None:
    """Measures both paths, prints the table, and writes the figures to `--out`."""
    options = parse_options()
    with tempfile.TemporaryDirectory() as folder:
        direct, mesh = measure(options, Path(folder))
    print(report(direct, mesh))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        rounds = {"direct": [r._asdict() for r in direct], "mesh": [r._asdict() for r in mesh]}
        options.out.write_text(json.dumps(rounds, indent=1) + "\n")


if __name__ == "__main__":
    main()
