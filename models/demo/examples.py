"""Training examples: token ids in the chat template's format, with each token's loss weight.

Real passages and sentences of random tokens have the same format. Random tokens teach matching,
choosing and copying for the whole vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tokenizers import Tokenizer

from models.demo.rule import WORD, choose, stem
from models.demo.vocabulary import (
    ASSISTANT,
    BOS,
    END,
    FIRST_HANDLE,
    FIRST_TEXT,
    NONE,
    NUM_CITATIONS,
    NUM_HANDLES,
    USER,
    VOCAB_SIZE,
)
from orchestrator.search.prompt import NOTHING_FOUND

HANDLE_WEIGHT = 8.0
"""Loss weight of handles: an answer has few of them, but many copied tokens."""

EXERCISE_WEIGHT = -1.0
"""Marks tokens of the exercise after an answer, which have a separate loss."""

MAX_EXERCISE_TOKENS = 250
MAX_SCORE = 5
IGNORED = -1


class Sentence(NamedTuple):
    """A sentence as tokens; `words` has each token's word, None between words."""

    ids: Sequence[int]
    words: Sequence[object]
    bag: frozenset[object]


class Row(NamedTuple):
    """A training sequence; all four lists have its length."""

    ids: list[int]
    weights: list[float]
    """Loss weight of the token; 0: prompt; EXERCISE_WEIGHT: part of the exercise."""
    in_question: list[int]
    """At the last token of each passage word: whether it is a key word; else IGNORED."""
    scores: list[int]
    """At the last token of each passage sentence: its number of key words; else IGNORED."""


class Format:
    """Builds rows in the format that the chat template renders."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        citations = [tokenizer.token_to_id(f" [{n}]") for n in range(1, NUM_CITATIONS + 1)]
        self._citation = [0, *citations]
        self._number = [[], *(self.encode(f"[{n}]") for n in range(1, NUM_CITATIONS + 1))]

    def encode(self, text: str) -> list[int]:
        """The ids of a piece of text."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def sentence(self, text: str) -> Sentence:
        """A sentence with the stem of each token's word."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        spans = [(m.start(), m.end(), stem(m.group())) for m in WORD.finditer(text)]
        words: list[object] = []
        at = 0
        for begin, end in encoding.offsets:
            while at < len(spans) and spans[at][1] <= begin:
                at += 1
            inside = at < len(spans) and spans[at][0] < end
            words.append(spans[at][2] if inside else None)
        return Sentence(encoding.ids, words, frozenset(word for *_, word in spans))

    def search(
        self,
        question: list[int],
        keys: frozenset[object],
        passages: Sequence[Sequence[Sentence]],
        titles: Sequence[list[int]],
        first_handle: int,
        rng: random.Random | None = None,
    ) -> Row:
        """A search prompt and its answer by the rule; `first_handle` is the first handle's number.

        With `rng`, copies of other sentences follow as an exercise: an answer has about 50 tokens
        after a prompt of 600, and more copied tokens teach copying faster.
        """
        row = Row([], [], [], [])
        question = [*self.encode("Question:"), *question]
        self._put(row, [BOS, USER, *self.encode("\n"), *question])
        self._put(row, self.encode("\n\nSources:\n\n"))
        if not passages:
            self._put(row, [*self.encode("None."), *self.encode("\n\n")])
        handle_of = self._put_passages(row, keys, passages, titles, first_handle)
        self._put(row, [*question, *self.encode("\n"), END, ASSISTANT])
        chosen = choose(keys, [[sentence.bag for sentence in each] for each in passages])
        if not chosen:
            self._put_nothing_found(row)
        for turn, (number, place) in enumerate(chosen):
            if turn:
                self._put(row, self.encode(" "), HANDLE_WEIGHT / 2)
            self._put(row, [handle_of[number, place]], HANDLE_WEIGHT)
            self._put(row, [*passages[number][place].ids, self._citation[number + 1]], 1.0)
        self._put(row, [END], HANDLE_WEIGHT / 2)
        if rng is not None:
            others = [place for place in handle_of if place not in chosen]
            rng.shuffle(others)
            self._put_exercise(row, passages, [(place, handle_of[place]) for place in others])
        return row

    def chat(self, message: str) -> Row:
        """A message that is not a search, with the answer that nothing was found."""
        row = Row([], [], [], [])
        newline = self.encode("\n")
        self._put(row, [BOS, USER, *newline, *self.encode(message), *newline, END, ASSISTANT])
        self._put_nothing_found(row)
        self._put(row, [END], HANDLE_WEIGHT / 2)
        return row

    def _put_passages(
        self,
        row: Row,
        keys: frozenset[object],
        passages: Sequence[Sequence[Sentence]],
        titles: Sequence[list[int]],
        first_handle: int,
    ) -> dict[tuple[int, int], int]:
        newline = self.encode("\n")
        handle_of: dict[tuple[int, int], int] = {}
        for number, (sentences, title) in enumerate(zip(passages, titles, strict=True)):
            self._put(row, [*self._number[number + 1], *title, *newline])
            for place, sentence in enumerate(sentences):
                handle = FIRST_HANDLE + (first_handle + len(handle_of)) % NUM_HANDLES
                handle_of[number, place] = handle
                self._put(row, [handle])
                begin = len(row.ids)
                self._put(row, sentence.ids)
                row.in_question[begin:] = _in_question(sentence.words, keys)
                self._put(row, [self._citation[number + 1]])
                row.scores[-1] = min(MAX_SCORE, len(keys & sentence.bag))
                self._put(row, newline)
            self._put(row, newline)
        return handle_of

    def _put_exercise(
        self,
        row: Row,
        passages: Sequence[Sequence[Sentence]],
        places: Sequence[tuple[tuple[int, int], int]],
    ) -> None:
        room = MAX_EXERCISE_TOKENS
        for (number, place), handle in places:
            ids = passages[number][place].ids
            if len(ids) + 2 <= room:
                room -= len(ids) + 2
                self._put(row, [handle])
                self._put(row, [*ids, self._citation[number + 1]], EXERCISE_WEIGHT)

    def _put_nothing_found(self, row: Row) -> None:
        self._put(row, [NONE], HANDLE_WEIGHT)
        self._put(row, self.encode(NOTHING_FOUND), 1.0)

    @staticmethod
    def _put(row: Row, ids: Sequence[int], weight: float = 0.0) -> None:
        row.ids.extend(ids)
        row.weights.extend([weight] * len(ids))
        row.in_question.extend([IGNORED] * len(ids))
        row.scores.extend([IGNORED] * len(ids))


def _in_question(words: Sequence[object], keys: frozenset[object]) -> list[int]:
    """At each word's last token, whether the word is a key word: only there it is complete."""
    following = [*words[1:], None]
    return [
        int(word in keys) if word is not None and word != after else IGNORED
        for word, after in zip(words, following, strict=True)
    ]


def copying(rng: random.Random, num_ids: int, max_segments: int, max_length: int) -> Row:
    """Segments after handles, then the same ones in another order, to copy by their handles.

    The distances vary. With a fixed distance a model learns to copy from a relative position
    instead of matching the handle, which does not help the later phases.
    """
    ids = range(FIRST_TEXT, min(FIRST_TEXT + num_ids, VOCAB_SIZE - NUM_CITATIONS))
    number = rng.randint(2, max_segments)
    lengths = [rng.randint(3, max_length) for _ in range(number)]
    total = sum(lengths)
    distinct = total <= len(ids) and rng.random() < 0.7
    pool: Iterator[int] = iter(rng.sample(ids, total) if distinct else rng.choices(ids, k=total))
    segments = [[next(pool) for _ in range(length)] for length in lengths]
    handles = rng.sample(range(FIRST_HANDLE, FIRST_HANDLE + NUM_HANDLES), number)
    row = Row([], [], [], [])
    Format._put(row, rng.choices(ids, k=rng.randint(0, 6)))
    for handle, segment in zip(handles, segments, strict=True):
        Format._put(row, [handle, *segment])
    Format._put(row, [*rng.choices(ids, k=rng.randint(0, 6)), ASSISTANT])
    for turn in [*rng.sample(range(number), number), rng.randrange(number)]:
        Format._put(row, [handles[turn]])
        Format._put(row, segments[turn], 1.0)
    return row


def synthetic(
    rng: random.Random,
    format: Format,
    *,
    max_passages: int,
    max_sentences: int,
    max_length: int,
    few_ids: bool,
) -> Row:
    """A search over sentences of random tokens; the question is tokens of one of them."""
    everything = range(FIRST_TEXT, VOCAB_SIZE - NUM_CITATIONS)
    ids = rng.choices(everything, k=64) if few_ids else everything
    passages = [
        [
            _random_sentence(rng.choices(ids, k=rng.randint(3, max_length)))
            for _ in range(rng.randint(1, max_sentences))
        ]
        for _ in range(rng.randint(1, max_passages))
    ]
    source = sorted(rng.choice(rng.choice(passages)).ids)
    question = rng.sample(sorted(set(source)), min(len(set(source)), rng.randint(1, 4)))
    choice = rng.random()
    if choice < 0.15:
        question = rng.choices(everything, k=len(question))
    elif choice < 0.6:
        _plant(rng, passages, question)
    titles = [rng.choices(ids, k=rng.randint(1, 3)) for _ in passages]
    return format.search(
        question, frozenset(question), passages, titles, rng.randrange(NUM_HANDLES)
    )


def _plant(rng: random.Random, passages: list[list[Sentence]], question: list[int]) -> None:
    """Puts some of the question into other sentences: distractors."""
    for _ in range(rng.randint(1, 4)):
        sentences = rng.choice(passages)
        place = rng.randrange(len(sentences))
        ids = list(sentences[place].ids)
        for token_id in rng.sample(question, rng.randint(1, len(question))):
            ids[rng.randrange(len(ids))] = token_id
        sentences[place] = _random_sentence(ids)


def _random_sentence(ids: list[int]) -> Sentence:
    return Sentence(ids, ids, frozenset(ids))
