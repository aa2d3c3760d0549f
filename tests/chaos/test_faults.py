"""Random faults under load, and an oracle that knows every answer.

    make chaos SEED=7 DURATION=120

replays seed 7 for two minutes. Nothing may be lost, doubled or left hanging: each answer is whole
and right, or ends, where it ends, with a status that says so; and in the end everything works.
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
from tests.chaos.cluster import running_cluster
from tests.chaos.faults import FAKETIME, Breaker, plan
from tests.chaos.load import PROMPTS, Answer, Oracle, Question, ask
from tests.chaos.proxy import Proxy
from tests.e2e.support.stack import ROOT, free_ports

SEED = int(os.environ.get("SEED") or 1)
SECONDS = float(os.environ.get("DURATION") or 60)
NUM_CLIENTS = 8
HUNG_SECONDS = 150.0
NUMBERS = {"tokenizer": 2, "inference": 2, "orchestrator": 2, "gateway": 1}
BREAKABLE = {name: number for name, number in NUMBERS.items() if name != "gateway"}

QUESTIONS = tuple(
    Question(prompt=prompt, max_tokens=length) for prompt in PROMPTS[:4] for length in (8, 80)
)

# What a client may be told, where the process that it was on was lost with it.
TRUE_ERRORS = (
    "a service behind this one cannot be reached",
    "no engine is ready",
    "given up after 2 engines",
    "the request was cancelled behind this service",
    "being worked on",
    "the tokenizer",
    "at most",
)

pytestmark = pytest.mark.timeout(1200 + 4 * SECONDS)


def build_index(folder: Path) -> Path:
    """The corpus of the examples, indexed as a user does."""
    out = folder / "corpus.sqlite3"
    command = [sys.executable, "-m", "orchestrator.index", "examples/corpus", "--out", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    return out


def settings(index: Path, clock: Path) -> dict[str, str]:
    """The index, and a clock that a file can set."""
    made = {"ORCHESTRATOR_INDEX": str(index), "ORCHESTRATOR_MAX_CONCURRENT_REQUESTS": "64"}
    if FAKETIME.exists():
        clock.write_text("+0h\n")
        made |= {
            "LD_PRELOAD": str(FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(clock),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_RESET": "1",
        }
    return made


class Clients:
    """Ask all the time, some leave in the middle; every answer is kept."""

    def __init__(self, url: str, oracle: Oracle) -> None:
        self._url = url
        self._oracle = oracle
        self.asking = True
        self.num_left = 0
        self.answers: list[tuple[Question, Answer]] = []

    async def run(self, number: int) -> None:
        """One client, until told to stop."""
        order = random.Random(f"{SEED}/{number}")
        while self.asking:
            question = order.choice(QUESTIONS)
            leaves = order.random() < 0.15
            async with httpx.AsyncClient(
                base_url=self._url, timeout=HUNG_SECONDS, trust_env=False
            ) as client:
                try:
                    async with asyncio.timeout(order.uniform(0.05, 1) if leaves else HUNG_SECONDS):
                        answer = await ask(client, question)
                except TimeoutError:
                    assert leaves, f"hung: {question}"
                    self.num_left += 1
                    continue
            self._oracle.check(question, answer)
            if not answer.complete:
                assert any(words in answer.error for words in TRUE_ERRORS), answer
                await asyncio.sleep(0.2)
            self.answers.append((question, answer))


async def test_nothing_is_lost_doubled_or_hung(tmp_path: Path) -> None:
    """The plan of a seed, with eight clients that ask all the time."""
    index, clock = build_index(tmp_path), tmp_path / "clock"
    faults = [
        fault
        for fault in plan(SEED, SECONDS, BREAKABLE)
        if fault.kind != "clock_jump" or FAKETIME.exists()
    ]
    print(f"seed {SEED}:", *faults, sep="\n  ")
    proxies = [Proxy(port) for port in free_ports(NUMBERS["inference"])]
    routes = {"inference": ",".join(proxy.address for proxy in proxies)}
    async with AsyncExitStack() as stack:
        for proxy in proxies:
            await stack.enter_async_context(proxy.running())
        # Entered by hand: starting must not stop this loop, which the proxies run on.
        context = running_cluster(tmp_path, NUMBERS, settings(index, clock), routes, proxies)
        cluster = await asyncio.to_thread(context.__enter__)
        stack.callback(context.__exit__, None, None, None)
        [url] = cluster.urls
        oracle = Oracle()
        await oracle.learn(url, QUESTIONS)
        breaker, clients = Breaker(cluster, proxies, index, clock), Clients(url, oracle)
        async with asyncio.TaskGroup() as tasks:
            for number in range(NUM_CLIENTS):
                tasks.create_task(clients.run(number))
            await breaker.run(faults)
            await asyncio.to_thread(cluster.wait_ready)
            clients.asking = False
        whole = [answer for _, answer in clients.answers if answer.complete]
        print(f"{len(clients.answers)} answers, {len(whole)} whole, {clients.num_left} left early")
        print("faults:", breaker.num_done)
        assert sum(breaker.num_done.values()) == len(faults)
        assert len(whole) > len(clients.answers) / 2
        # And in the end all is as it was.
        assert all(node.alive for node in cluster.nodes), cluster.logs()
        async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
            for question in QUESTIONS:
                answer = await ask(client, question)
                assert answer.complete, answer
                oracle.check(question, answer)
            found = (await client.get("/api/v1/search", params={"query": "kubernetes"})).json()
            assert found["search_results"], "the index is gone"
        for node in cluster.of("inference"):
            await nothing_runs(node.address)
        shutil.rmtree(tmp_path / "documents", ignore_errors=True)


async def nothing_runs(address: str) -> None:
    """No sequence is left in the engine, and no block of its cache is held."""
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


def test_a_seed_replays() -> None:
    """The same plan for the same seed, another for another."""
    assert plan(5, 60, BREAKABLE) == plan(5, 60, BREAKABLE)
    assert plan(5, 60, BREAKABLE) != plan(6, 60, BREAKABLE)
    assert {fault.kind for fault in plan(5, 600, BREAKABLE)} >= {"kill", "stop", "clock_jump"}
