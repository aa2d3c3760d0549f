"""Random faults under load, with an oracle of the expected answers.

    make chaos SEED=7 DURATION=120

runs the plan of seed 7 for two minutes. No token may be lost or duplicated, and no request may
hang: each answer is complete and correct, or a correct prefix with an error. In the end all
services work.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

from mesh.rpc.channel import call_unary, open_channel
from mesh.v1 import inference_pb2, inference_pb2_grpc
from tests.chaos.cluster import Cluster, running_cluster
from tests.chaos.faults import FAKETIME, FaultInjector, plan
from tests.chaos.load import PROMPTS, CompletionRequest, CompletionResult, Oracle, stream_completion
from tests.chaos.proxy import Proxy
from tests.e2e.support.stack import ROOT, free_ports

SEED = int(os.environ.get("SEED") or 1)
SECONDS = float(os.environ.get("DURATION") or 60)
NUM_CLIENTS = 8
HANG_SECONDS = 150.0
NUMBERS = {"tokenizer": 2, "inference": 2, "orchestrator": 2, "gateway": 1}
FAULTY_SERVICES = {name: number for name, number in NUMBERS.items() if name != "gateway"}

REQUESTS = tuple(
    CompletionRequest(prompt=prompt, max_tokens=length)
    for prompt in PROMPTS[:4]
    for length in (8, 80)
)

# Parts of the error messages that a client may receive when a process of its request is lost.
EXPECTED_ERRORS = (
    "an upstream service is unreachable",
    "no engine is ready",
    "given up after 2 engines",
    "the request was cancelled by an upstream service",
    "in progress, ",
    "the tokenizer",
    "at most",
)

pytestmark = pytest.mark.timeout(1200 + 4 * SECONDS)


def build_index(folder: Path) -> Path:
    """The search index of examples/corpus, built by the command line."""
    out = folder / "corpus.sqlite3"
    command = [sys.executable, "-m", "orchestrator.index", "examples/corpus", "--out", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    return out


def settings(index: Path, clock: Path) -> dict[str, str]:
    """Settings for the index, and for a clock that a file controls."""
    variables = {"ORCHESTRATOR_INDEX": str(index), "ORCHESTRATOR_MAX_CONCURRENT_REQUESTS": "64"}
    if FAKETIME.exists():
        clock.write_text("+0h\n")
        variables |= {
            "LD_PRELOAD": str(FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(clock),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_RESET": "1",
        }
    return variables


class Clients:
    """Clients that send requests continuously; some disconnect early. Keeps all results."""

    def __init__(self, url: str, oracle: Oracle) -> None:
        self._url = url
        self._oracle = oracle
        self.running = True
        self.num_disconnects = 0
        self.results: list[tuple[CompletionRequest, CompletionResult]] = []

    async def run(self, number: int) -> None:
        """Runs one client until `running` is false."""
        rng = random.Random(f"{SEED}/{number}")
        while self.running:
            request = rng.choice(REQUESTS)
            disconnects = rng.random() < 0.15
            async with httpx.AsyncClient(
                base_url=self._url, timeout=HANG_SECONDS, trust_env=False
            ) as client:
                try:
                    limit = rng.uniform(0.05, 1) if disconnects else HANG_SECONDS
                    async with asyncio.timeout(limit):
                        result = await stream_completion(client, request)
                except TimeoutError:
                    assert disconnects, f"the request hangs: {request}"
                    self.num_disconnects += 1
                    continue
            self._oracle.check(request, result)
            if not result.complete:
                assert any(part in result.error for part in EXPECTED_ERRORS), result
                await asyncio.sleep(0.2)
            self.results.append((request, result))


async def test_no_token_is_lost_and_no_request_hangs(tmp_path: Path) -> None:
    """The plan of a seed, under the load of eight clients."""
    index, clock = build_index(tmp_path), tmp_path / "clock"
    faults = [
        fault
        for fault in plan(SEED, SECONDS, FAULTY_SERVICES)
        if fault.kind != "clock_jump" or FAKETIME.exists()
    ]
    print(f"seed {SEED}:", *faults, sep="\n  ")
    proxies = [Proxy(port) for port in free_ports(NUMBERS["inference"])]
    routes = {"inference": ",".join(proxy.address for proxy in proxies)}
    async with AsyncExitStack() as stack:
        for proxy in proxies:
            await stack.enter_async_context(proxy.running())
        # Entered in a thread: starting blocks, and the proxies run on this event loop.
        context = running_cluster(tmp_path, NUMBERS, settings(index, clock), routes, proxies)
        cluster = await asyncio.to_thread(context.__enter__)
        stack.callback(context.__exit__, None, None, None)
        [url] = cluster.urls
        oracle = Oracle()
        await oracle.learn(url, REQUESTS)
        injector, clients = FaultInjector(cluster, proxies, index, clock), Clients(url, oracle)
        async with asyncio.TaskGroup() as tasks:
            for number in range(NUM_CLIENTS):
                tasks.create_task(clients.run(number))
            await injector.run(faults)
            await asyncio.to_thread(cluster.wait_ready)
            clients.running = False
        complete = [result for _, result in clients.results if result.complete]
        print(
            f"{len(clients.results)} results, {len(complete)} complete, "
            f"{clients.num_disconnects} early disconnects"
        )
        print("faults:", injector.num_done)
        assert sum(injector.num_done.values()) == len(faults)
        assert len(complete) > len(clients.results) / 2
        await check_everything_works(cluster, oracle)
        shutil.rmtree(tmp_path / "documents", ignore_errors=True)


async def check_everything_works(cluster: Cluster, oracle: Oracle) -> None:
    """Every process runs, every request succeeds, and the engines are idle afterwards."""
    assert all(node.alive for node in cluster.nodes), cluster.logs()
    [url] = cluster.urls
    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
        for request in REQUESTS:
            result = await stream_completion(client, request)
            assert result.complete, result
            oracle.check(request, result)
        found = (await client.get("/api/v1/search", params={"query": "kubernetes"})).json()
        assert found["search_results"], "the search has no results"
    for node in cluster.of("inference"):
        await wait_idle(node.address)


async def wait_idle(address: str) -> None:
    """Waits until the engine has no sequence; fails if KV blocks are still allocated."""
    channel = open_channel(address)
    stub = inference_pb2_grpc.InferenceServiceStub(channel)
    try:
        async with asyncio.timeout(30):
            while True:
                load = await call_unary(stub.GetLoad, inference_pb2.GetLoadRequest(), 10)
                if not (load.num_requests_running or load.num_requests_waiting):
                    break
                await asyncio.sleep(0.1)
        assert load.kv_cache_usage == 0
    finally:
        await channel.close()


def test_a_seed_determines_the_plan() -> None:
    """The same seed gives the same plan, another seed another plan."""
    assert plan(5, 60, FAULTY_SERVICES) == plan(5, 60, FAULTY_SERVICES)
    assert plan(5, 60, FAULTY_SERVICES) != plan(6, 60, FAULTY_SERVICES)
    assert {fault.kind for fault in plan(5, 600, FAULTY_SERVICES)} >= {"kill", "stop", "clock_jump"}
