"""Samples questions with passages from the runs of the corpus."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from models.demo.corpus import Run
from models.demo.questions import ask_about, content_words
from models.demo.rule import key_words, stems

NOTHING_FITS_SHARE = 0.08


class Passage(NamedTuple):
    """A title and consecutive sentences."""

    title: str
    sentences: list[str]


class Pair(NamedTuple):
    """A question and the passages of its search results."""

    question: str
    passages: list[Passage]


class Difficulty(NamedTuple):
    """Upper bounds of a pair's size, and whether its question is loose."""

    max_passages: int
    max_sentences: int
    max_words: int
    loose: bool


class Pairs:
    """Samples pairs: one passage answers the question, the others are distractors.

    Distractors share a key word with the question, or come from the same package.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = runs
        self._of_package: dict[str, list[int]] = {}
        self._with_stem: dict[str, list[int]] = {}
        self.frequency: Counter[str] = Counter()
        for number, run in enumerate(runs):
            self._of_package.setdefault(run.package, []).append(number)
            found = [stems(sentence) for sentence in run.sentences]
            self.frequency.update(stem for each in found for stem in each)
            for stem in sorted(frozenset().union(*found)):
                self._with_stem.setdefault(stem, []).append(number)

    def sample(self, rng: random.Random, difficulty: Difficulty) -> Pair:
        """A pair; in a small share of pairs no passage answers the question."""
        while True:
            target = rng.randrange(len(self._runs))
            run = self._runs[target]
            place = rng.randrange(len(run.sentences))
            if len(content_words(run.sentences[place])) >= 2:
                break
        question = ask_about(
            run.sentences[place],
            self.frequency,
            rng,
            max_words=difficulty.max_words,
            loose=difficulty.loose,
        )
        keys = sorted(key for key in key_words(question) if key in self._with_stem)
        nothing_fits = rng.random() < NOTHING_FITS_SHARE
        used = {target}
        passages = []
        if not nothing_fits:
            passages.append(self._cut(target, difficulty, rng, place))
        wanted = rng.randint(1, difficulty.max_passages)
        while len(passages) < wanted:
            other, at = self._distractor(run.package, keys, nothing_fits, rng)
            if other in used:
                if rng.random() < 0.3:
                    break
                continue
            used.add(other)
            passages.append(self._cut(other, difficulty, rng, at))
        if not passages:
            passages.append(self._cut(rng.randrange(len(self._runs)), difficulty, rng, None))
        rng.shuffle(passages)
        return Pair(question, passages)

    def _distractor(
        self, package: str, keys: list[str], nothing_fits: bool, rng: random.Random
    ) -> tuple[int, int | None]:
        choice = rng.random()
        if choice < 0.55 and keys and not nothing_fits:
            key = rng.choice(keys)
            number = rng.choice(self._with_stem[key])
            sentences = self._runs[number].sentences
            hits = [at for at, sentence in enumerate(sentences) if key in stems(sentence)]
            return number, rng.choice(hits)
        if choice < 0.85:
            return rng.choice(self._of_package[package]), None
        return rng.randrange(len(self._runs)), None

    def _cut(
        self, number: int, difficulty: Difficulty, rng: random.Random, around: int | None
    ) -> Passage:
        """Consecutive sentences of a run, with the one at `around` among them."""
        run = self._runs[number]
        length = rng.randint(1, difficulty.max_sentences)
        last = max(0, len(run.sentences) - length)
        begin = rng.randint(0, last) if around is None else around - rng.randrange(length)
        begin = max(0, min(begin, last))
        return Passage(run.title or "Notes", run.sentences[begin : begin + length])
