"""Real engines that die, and services that are restarted one after another, under load."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.chaos.cluster import Cluster, running_cluster
from tests.chaos.load import PROMPTS, Answer, Oracle, Question, ask

NUM_STREAMS = 32
QUESTIONS = tuple(Question(prompt=prompt, max_tokens=160) for prompt in PROMPTS[:4])
SETTINGS = {
    "ORCHESTRATOR_MAX_CONCURRENT_REQUESTS": "128",
    **{f"{name}_DRAIN_SECONDS": "60" for name in ("GATEWAY", "ORCHESTRATOR", "TOKENIZER")},
    "INFERENCE_DRAIN_SECONDS": "1",
}

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Two of each service."""
    numbers = {"tokenizer": 2, "inference": 2, "orchestrator": 2, "gateway": 2}
    with running_cluster(tmp_path, numbers, SETTINGS) as cluster:
        yield cluster


@asynccontextmanager
async def clients(cluster: Cluster) -> AsyncIterator[list[httpx.AsyncClient]]:
    """One for each gateway."""
    limits = httpx.Limits(max_connections=None)
    made = [
        httpx.AsyncClient(base_url=url, timeout=300, trust_env=False, limits=limits)
        for url in cluster.urls
    ]
    yield made
    for client in made:
        await client.aclose()


async def test_an_engine_killed_under_32_streams_costs_no_client_anything(
    cluster: Cluster,
) -> None:
    """SIGKILL in mid-stream: every text is byte for byte what it would have been."""
    oracle = Oracle()
    await oracle.learn(cluster.urls[0], QUESTIONS)
    async with clients(cluster) as made:
        begun = [asyncio.Event() for _ in range(NUM_STREAMS)]
        asked = [QUESTIONS[number % len(QUESTIONS)] for number in range(NUM_STREAMS)]
        streams = [
            asyncio.create_task(ask(made[number % 2], question, started=begun[number]))
            for number, question in enumerate(asked)
        ]
        await asyncio.gather(*(event.wait() for event in begun))
        assert not any(stream.done() for stream in streams), "too fast to be cut in the middle"
        cluster.of("inference")[0].send(signal.SIGKILL)
        answers = await asyncio.gather(*streams)
    assert [each for each in answers if not each.complete] == []
    for question, answer in zip(asked, answers, strict=True):
        assert answer.text == oracle.texts[question]
    lost = sum("replica lost under" in n.log.read_text() for n in cluster.of("orchestrator"))
    assert lost >= 1, "nothing ran on the one that was killed"


async def test_a_rolling_restart_breaks_no_stream(cluster: Cluster) -> None:
    """Each process in turn is told to end, ends with 0, and is started again, under load."""
    oracle = Oracle()
    await oracle.learn(cluster.urls[0], QUESTIONS)
    answers: list[tuple[Question, Answer]] = []
    restarting = True
    draining: set[str] = set()

    async def keep_asking(number: int) -> None:
        while restarting:
            # As a Service's endpoints do: no new request to a gateway that is not ready.
            urls = [url for url in cluster.urls if url not in draining]
            question = QUESTIONS[(number + len(answers)) % len(QUESTIONS)]
            async with httpx.AsyncClient(
                base_url=urls[number % len(urls)], timeout=120, trust_env=False
            ) as client:
                answers.append((question, await ask(client, question)))

    async with asyncio.TaskGroup() as tasks:
        for number in range(6):
            tasks.create_task(keep_asking(number))
        for node in cluster.nodes:
            url = f"http://{node.address}"
            draining.add(url)
            await asyncio.sleep(0.2)
            node.send(signal.SIGTERM)
            assert await asyncio.to_thread(node.wait, 90) == 0, node.log.read_text()[-3000:]
            node.start()
            await wait_serving(cluster, node.service)
            draining.discard(url)
        restarting = False
    broken = [each for _, each in answers if not each.complete]
    assert broken == []
    for question, answer in answers:
        assert answer.text == oracle.texts[question]
    assert len(answers) > len(cluster.nodes)


async def wait_serving(cluster: Cluster, service: str) -> None:
    """Until whoever calls the service has had the time to find the new process."""
    await asyncio.to_thread(cluster.wait_ready)
    node = cluster.of(service)
    end = time.monotonic() + 60
    while any("listening" not in each.log.read_text().rpartition("stopped")[2] for each in node):
        assert time.monotonic() < end, f"{service} did not come back"
        await asyncio.sleep(0.1)
    await asyncio.sleep(1.0)


async def test_what_is_lost_with_a_service_has_a_true_status(tmp_path: Path) -> None:
    """One orchestrator, killed: its streams end with an error that says so; then it is back."""
    with running_cluster(tmp_path, {"orchestrator": 1}) as cluster:
        oracle = Oracle()
        question = Question(prompt="Water is", max_tokens=400)
        await oracle.learn(cluster.urls[0], [question])
        async with clients(cluster) as [client]:
            begun = asyncio.Event()
            stream = asyncio.create_task(ask(client, question, started=begun))
            await begun.wait()
            [node] = cluster.of("orchestrator")
            node.send(signal.SIGKILL)
            answer = await stream
            oracle.check(question, answer)
            assert answer.error == "a service behind this one cannot be reached"
            refused = await ask(client, question)
            assert refused.status == 503
            node.wait()
            node.start()
            await asyncio.to_thread(cluster.wait_ready)
            assert (await ask(client, question)).text == oracle.texts[question]
            # The tokenizer: what is already generating goes on, what comes new is refused.
            begun = asyncio.Event()
            stream = asyncio.create_task(ask(client, question, started=begun))
            await begun.wait()
            [tokenizer] = cluster.of("tokenizer")
            tokenizer.send(signal.SIGKILL)
            refused = await ask(client, question)
            assert refused.status == 503
            assert (await stream).text == oracle.texts[question]
            tokenizer.wait()
            tokenizer.start()
            await asyncio.to_thread(cluster.wait_ready)
            assert (await ask(client, question)).complete
