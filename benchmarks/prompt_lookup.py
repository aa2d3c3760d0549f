"""Decode speed of the demo model's summaries with and without prompt lookup, at one stream.

python -m benchmarks.prompt_lookup

All engines answer each held-out question in turn, so that other load on the machine affects all
alike. The answers must be the same.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import transformers

from benchmarks.harness.alone import run_alone
from inference.engine.engine import Engine
from inference.model.loading import EngineOptions, load_engine
from inference.sampling.sampling_params import SamplingParams
from inference.scheduler.sequence import Sequence
from models.demo.evaluate import FOLDER, held_out_pairs
from orchestrator.search.prompt import Passage, search_messages


class Answer(NamedTuple):
    """One answer, and the seconds from its first token to its last."""

    token_ids: list[int]
    seconds: float
    num_drafted: int
    num_accepted: int


def prompts(folder: Path, limit: int) -> list[list[int]]:
    """The search prompts of the held-out questions."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    found = []
    for pair in held_out_pairs()[:limit]:
        passages = [Passage(p.title, " ".join(p.sentences)) for p in pair.passages]
        messages = [m._asdict() for m in search_messages(pair.question, passages)]
        found.append(
            tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        )
    return found


def answer(engine: Engine, name: str, prompt: list[int], temperature: float) -> Answer:
    """Runs one sequence alone."""
    params = SamplingParams(max_tokens=256, temperature=temperature, seed=7)
    eos = engine.model_info.eos_token_ids
    sequence = Sequence(name, prompt, params, eos_token_ids=eos)
    finish = run_alone(engine, sequence)
    assert finish.timings.first_token is not None
    return Answer(
        list(sequence.token_ids[sequence.num_prompt_tokens :]),
        finish.timings.finish - finish.timings.first_token,
        finish.num_drafted_tokens,
        finish.num_accepted_tokens,
    )


def speed(answers: list[Answer]) -> float:
    """Tokens per second, without the first token of each answer."""
    return sum(len(a.token_ids) - 1 for a in answers) / sum(a.seconds for a in answers)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=FOLDER, help="model folder")
    parser.add_argument("--limit", type=int, default=60, help="number of questions")
    parser.add_argument(
        "--tokens",
        type=int,
        nargs="+",
        default=[8],
        help="numbers of speculative tokens to compare",
    )
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--threads", type=int, default=0, help="0: the container's CPU limit")
    arguments = parser.parse_args()
    engines = {
        number: load_engine(
            replace(
                EngineOptions.defaults(arguments.model, "demo"),
                threads=arguments.threads,
                kv_cache_tokens=4096,
                num_speculative_tokens=number,
            )
        )
        for number in [0, *arguments.tokens]
    }
    answers: dict[int, list[Answer]] = {number: [] for number in engines}
    for index, prompt in enumerate(prompts(arguments.model, arguments.limit)):
        for number, engine in engines.items():
            answers[number].append(answer(engine, str(index), prompt, arguments.temperature))
    plain = [a.token_ids for a in answers[0]]
    print(f"{len(plain)} answers, {statistics.mean(map(len, plain)):.0f} tokens on average")
    print("drafts  tokens/s  ratio  accepted  same answers")
    for number, each in answers.items():
        drafted = sum(a.num_drafted for a in each)
        share = sum(a.num_accepted for a in each) / drafted if drafted else 0.0
        same = sum(a.token_ids == b for a, b in zip(each, plain, strict=True))
        ratio = speed(each) / speed(answers[0])
        print(f"{number:6}{speed(each):10.1f}{ratio:7.2f}{share:10.1%}{same:8} of {len(plain)}")


if __name__ == "__main__":
    main()
