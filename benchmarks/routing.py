"""Time to the first token of conversations over two real engines, by routing policy.

    python -m benchmarks.routing --rounds 5

The engines run random weights of SmolLM2-135M's shape. Eight conversations begin with one system
prompt and take turns, two at a time; each turn's prompt is the one before and new tokens. All
policies run the same conversations in each round, on separate engines with one thread each.
Conversations are new in each round, so their caches are cold but for the system prompt's. The
answers of all policies must be equal.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import httpx

from benchmarks import make_model
from benchmarks.harness.processes import Processes
from benchmarks.harness.stack import Services

POLICIES = ("round_robin", "affinity", "prefix")
MODEL = "random"
VOCABULARY = range(300, 5000)
CONCURRENT = 2


class Answer(NamedTuple):
    """A turn's answer, and the seconds until its first token."""

    ttft: float
    text: str


async def ask(client: httpx.AsyncClient, prompt: Sequence[int], num_tokens: int) -> Answer:
    """One greedy completion of token ids, streamed."""
    body = {
        "model": MODEL,
        "prompt": list(prompt),
        "max_tokens": num_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    began, ttft, text = time.perf_counter(), 0.0, ""
    async with client.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            choices = json.loads(line.removeprefix("data: "))["choices"]
            if choices and choices[0]["text"]:
                ttft = ttft or time.perf_counter() - began
                text += choices[0]["text"]
    return Answer(ttft, text)


def conversations(rng: random.Random, options: argparse.Namespace) -> list[list[list[int]]]:
    """For each conversation the prompts of its turns."""
    system = random.Random(0).choices(VOCABULARY, k=options.system)
    found = []
    for _ in range(options.conversations):
        prompt, prompts = list(system), []
        for _ in range(options.turns):
            prompt = prompt + rng.choices(VOCABULARY, k=options.turn)
            prompts.append(prompt)
        found.append(prompts)
    return found


async def play(
    url: str, talks: Sequence[Sequence[Sequence[int]]], options: argparse.Namespace
) -> list[list[Answer]]:
    """The answers by turn; a turn of all conversations ends before the next one begins."""
    gate = asyncio.Semaphore(CONCURRENT)
    async with httpx.AsyncClient(base_url=url, timeout=300, trust_env=False) as client:

        async def turn(prompt: Sequence[int]) -> Answer:
            async with gate:
                return await ask(client, prompt, options.output)

        return [
            list(await asyncio.gather(*(turn(talk[number]) for talk in talks)))
            for number in range(options.turns)
        ]


def start(processes: Processes, model: Path, policies: Sequence[str]) -> dict[str, Services]:
    """Starts a gateway, an orchestrator, a tokenizer and two engines for each policy."""
    engine = (
        *("--model", str(model), "--model-name", MODEL, "--threads", "1"),
        *("--kv-cache-tokens", "32768", "--num-speculative-tokens", "0"),
    )
    stacks = {
        policy: Services(
            processes,
            prefix=f"{policy} ",
            engine=engine,
            more_engines={"inference2": engine},
            limits={
                "tokenizer": ("--model", str(model)),
                "orchestrator": ("--routing-policy", policy),
            },
        )
        for policy in policies
    }
    for services in stacks.values():
        services.wait_ready()
    return stacks


def measure(options: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    """Mean TTFT of the turns after the first one, in ms, by policy and round."""
    model = options.model or folder / "model"
    if options.model is None:
        make_model.make(model, "smollm2-135m")
    ttfts: dict[str, list[float]] = {policy: [] for policy in options.policies}
    with Processes(options.log or folder / "processes.log") as processes:
        stacks = start(processes, model, options.policies)
        for number in range(-1, options.rounds):  # round -1 warms up
            talks = conversations(random.Random(number + 100), options)
            texts = set()
            for policy, services in stacks.items():
                answers = asyncio.run(play(services.url, talks, options))
                texts.add(tuple(answer.text for turn in answers for answer in turn))
                later = [answer.ttft for turn in answers[1:] for answer in turn]
                print(f"round {number + 1}, {policy}: {statistics.fmean(later) * 1e3:.1f} ms")
                if number >= 0:
                    ttfts[policy].append(statistics.fmean(later) * 1e3)
            assert len(texts) == 1, "the answers differ between policies"
    return ttfts


def report(ttfts: dict[str, list[float]]) -> str:
    """A Markdown table; ratios are taken within each round."""
    first = next(iter(ttfts.values()))
    lines = ["| policy | TTFT of later turns, mean ms | ratio to the first row |", "|---|---|---|"]
    for policy, values in ttfts.items():
        ratio = statistics.median(a / b for a, b in zip(values, first, strict=True))
        lines.append(f"| {policy} | {statistics.median(values):.1f} | {ratio:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--conversations", type=int, default=8)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--system", type=int, default=128, help="tokens of the system prompt")
    parser.add_argument("--turn", type=int, default=256, help="new tokens of a turn")
    parser.add_argument("--output", type=int, default=8, help="tokens of an answer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--model", type=Path, help="model folder; default: random SmolLM2-135M")
    parser.add_argument("--log", type=Path, help="file for the output of the services")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ttfts = measure(options, Path(folder))
    print(f"\n{report(ttfts)}\nThe answers are equal.")


if __name__ == "__main__":
    main()
