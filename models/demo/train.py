"""Trains the demo model: python -m models.demo.train [--minutes 60]

Three phases, each of which builds on the one before:

  A  copying: segments of random tokens after handles, from few ids to the whole vocabulary
  B  choosing and copying: searches over sentences of random tokens
  C  real searches: few short passages and exact words first, then more and looser ones

Linear readouts on inner layers are trained as well and are not part of the model. They predict:
after the second layer, the previous token and the last handle, which copying matches by; after the
third, whether a word is a key word; after the fifth, a sentence's number of key words.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch.optim.swa_utils import AveragedModel

from models.demo import corpus
from models.demo.examples import Format, Row, copying, synthetic
from models.demo.network import Network
from models.demo.pairs import Difficulty, Pairs
from models.demo.questions import GREETINGS, ask_about
from models.demo.rule import key_words
from models.demo.trainer import Trainer
from models.demo.vocabulary import (
    NUM_HANDLES,
    VOCAB_SIZE,
    token_ids_config,
    tokenizer_config,
    train_tokenizer,
)

FOLDER = Path(__file__).parent
WORK = FOLDER / ".work"


# ids, segments, longest segment, rows per batch; a stage ends when the loss reaches COPY_GOAL.
COPY_STAGES = (
    (64, 3, 12, 48), (64, 5, 16, 28), (256, 5, 16, 28),
    (1000, 5, 16, 28), (3000, 6, 18, 24), (VOCAB_SIZE, 6, 20, 20),
)  # fmt: skip
COPY_GOAL = 0.3
MAX_COPY_STEPS = 400
# passages, sentences, longest sentence, rows per batch, few ids, steps
SYNTHETIC_STAGES = ((1, 3, 7, 40, True, 140), (2, 3, 9, 26, False, 140))

EXACT = Difficulty(2, 3, 3, False)
FEW = Difficulty(3, 4, 4, True)
MORE = Difficulty(5, 4, 5, True)
LONG = Difficulty(5, 7, 6, True)
LONGEST = Difficulty(8, 8, 6, True)
ROWS = {EXACT: 16, FEW: 12, MORE: 7, LONG: 4, LONGEST: 2}
MAX_PROMPT_TOKENS = 1700
AVERAGED_FROM = 0.85
"""Share of phase C after which weights are averaged (arXiv:1803.05407)."""


def learn_copying(trainer: Trainer, rng: random.Random, rate: float) -> None:
    """Runs phase A."""
    for num_ids, segments, length, num_rows in COPY_STAGES:
        mean = 9.0
        for number in range(MAX_COPY_STEPS):
            rows = [copying(rng, num_ids, segments, length) for _ in range(num_rows)]
            warm = min(1.0, (trainer.num_steps + 1) / 50)
            mean += 0.1 * (trainer.step(f"A{num_ids}", rows, rate * warm) - mean)
            if number > 15 and mean < COPY_GOAL:
                break


def learn_choosing(trainer: Trainer, rng: random.Random, format: Format, rate: float) -> None:
    """Runs phase B."""
    for passages, sentences, length, num_rows, few_ids, num_steps in SYNTHETIC_STAGES:
        for _ in range(num_steps):
            rows = [
                synthetic(
                    rng,
                    format,
                    max_passages=passages,
                    max_sentences=sentences,
                    max_length=length,
                    few_ids=few_ids,
                )
                for _ in range(num_rows)
            ]
            trainer.step("B", rows, rate)


def learn_searching(
    trainer: Trainer,
    rng: random.Random,
    sample: Callable[[Difficulty], Row],
    random_row: Callable[[], Row],
    rate: float,
    seconds: float,
) -> Network:
    """Runs phase C for `seconds`; returns the mean of the weights over its end."""
    started = time.monotonic()
    average = AveragedModel(trainer.network)
    while (progress := (time.monotonic() - started) / seconds) < 1:
        warm = min(1.0, progress * 50)
        cosine = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress))
        difficulty = difficulty_at(progress, rng)
        if rng.random() < 0.05:
            rows = [random_row() for _ in range(10)]
        else:
            rows = [sample(difficulty) for _ in range(ROWS[difficulty])]
        trainer.step("C", rows, rate * min(warm, cosine))
        if progress > AVERAGED_FROM:
            average.update_parameters(trainer.network)
    mean: Network = average.module if average.n_averaged else trainer.network
    return mean


def difficulty_at(progress: float, rng: random.Random) -> Difficulty:
    """Easy pairs first, then a mixture of all sizes."""
    if progress < 0.15:
        return EXACT
    if progress < 0.35:
        return FEW
    choice = rng.random()
    # Mostly prompts like those of a search: five passages of several sentences.
    return MORE if choice < 0.37 else LONG if choice < 0.95 else LONGEST


class Searches:
    """Samples rows of real searches, and a few of other messages."""

    def __init__(self, runs: Sequence[corpus.Run], format: Format, rng: random.Random) -> None:
        self._runs = runs
        self._pairs = Pairs(runs)
        self._format = format
        self._rng = rng

    def row(self, difficulty: Difficulty) -> Row:
        """One row that fits `MAX_PROMPT_TOKENS`."""
        rng, format = self._rng, self._format
        if rng.random() < 0.03:
            return self._no_search(difficulty)
        while True:
            pair = self._pairs.sample(rng, difficulty)
            passages = [[format.sentence(s) for s in p.sentences] for p in pair.passages]
            titles = [format.encode(f" {p.title}")[:14] for p in pair.passages]
            question = format.encode(f" {pair.question}")
            offset = 0 if rng.random() < 0.3 else rng.randrange(NUM_HANDLES)
            keys: frozenset[object] = frozenset(key_words(pair.question))
            row = format.search(question, keys, passages, titles, offset, rng)
            if len(row.ids) <= MAX_PROMPT_TOKENS:
                return row

    def _no_search(self, difficulty: Difficulty) -> Row:
        rng = self._rng
        if rng.random() < 0.5:
            return self._format.chat(rng.choice(GREETINGS))
        sentence = rng.choice(rng.choice(self._runs).sentences)
        question = ask_about(
            sentence, self._pairs.frequency, rng, max_words=difficulty.max_words, loose=False
        )
        return self._format.search(self._format.encode(f" {question}"), frozenset(), [], [], 0)


def sentences_of(runs: Sequence[corpus.Run]) -> Iterator[str]:
    """All sentences of all runs."""
    return (sentence for run in runs for sentence in run.sentences)


def export(network: Network, folder: Path) -> None:
    """Writes weights and configs as a Hugging Face folder, except for tokenizer.json."""
    save_file(network.llama_state(), folder / "model.safetensors", metadata={"format": "pt"})
    files = {
        "config.json": {**network.llama_config(), **token_ids_config()},
        "generation_config.json": {**token_ids_config(), "do_sample": False},
        "tokenizer_config.json": tokenizer_config(network.shape.max_position_embeddings),
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def main() -> None:
    """The command-line entry point."""
    parser = argparse.ArgumentParser(prog="python -m models.demo.train", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60, help="duration of phase C")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate of phase C")
    parser.add_argument("--seed", type=int, default=1, help="random seed")
    parser.add_argument(
        "--resume", action="store_true", help="run phase C only, from the weights in --out"
    )
    parser.add_argument("--out", type=Path, default=FOLDER, help="the model's folder")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    rng = random.Random(arguments.seed)
    runs = corpus.build(WORK / "debs")
    runs = [run for run in runs if run.package not in corpus.HELD_OUT_PACKAGES]
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "tokenizer.json"
    tokenizer = (
        Tokenizer.from_file(str(path))
        if path.is_file()
        else train_tokenizer(sentences_of(runs), path)
    )
    format = Format(tokenizer)
    trainer = Trainer(arguments.out / "loss.csv")
    if arguments.resume:
        trainer.network.load_llama_state(load_file(arguments.out / "model.safetensors"))
    else:
        learn_copying(trainer, rng, rate=2 * arguments.rate)
        learn_choosing(trainer, rng, format, rate=2 * arguments.rate)

    def random_row() -> Row:
        return synthetic(rng, format, max_passages=3, max_sentences=4, max_length=14, few_ids=False)

    searches = Searches(runs, format, rng)
    seconds = arguments.minutes * 60
    network = learn_searching(trainer, rng, searches.row, random_row, arguments.rate, seconds)
    export(network, arguments.out)


if __name__ == "__main__":
    main()
