"""Scores pairs of texts: by a cross-encoder, or by the cosine of their embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import NamedTuple

from mesh.errors import invalid
from mesh.protocol.model_kind import InputUse, ModelKind
from mesh.protocol.similarity import Similarities
from orchestrator.clients.tokenizer import EncodedText, TextOptions, TokenizerClient
from orchestrator.embedding import (
    GROUP_CHARACTERS,
    GROUP_TEXTS,
    TotalTokens,
    check_length,
    encode_inputs,
    encode_texts,
    limited,
)
from orchestrator.generation import ModelInfo

MAX_TEXTS = 1000
"""Maximum texts on each side, as Cohere recommends for documents of a reranking."""


class ScoreMethod(StrEnum):
    """How scores are made."""

    EMBEDDING_SIMILARITY = "embedding_similarity"
    """The cosine of the angle between two embeddings."""
    CROSS_ENCODER = "cross_encoder"
    """A cross-encoder has read both texts together."""


class Pairs(NamedTuple):
    """Texts to compare: one with each of the others, or one by one."""

    first: Sequence[str]
    """One text, or as many as there are second ones."""
    second: Sequence[str]

    @property
    def has_one_first(self) -> bool:
        return len(self.first) == 1

    def first_of(self, number: int) -> str:
        """The first text of a pair."""
        return self.first[0 if self.has_one_first else number]

    def field_of_text(self, number: int) -> str:
        """The field of one of all texts: one and those to compare it with, or a, b, a, b, …"""
        if self.has_one_first:
            return f"second_texts[{number - 1}]" if number else "first_texts[0]"
        side = "second_texts" if number % 2 else "first_texts"
        return f"{side}[{number // 2}]"


def check_pairs(pairs: Pairs) -> None:
    """Raises MeshError (INVALID_REQUEST) for missing, empty or too many texts."""
    for field, texts in (("first_texts", pairs.first), ("second_texts", pairs.second)):
        if not 1 <= len(texts) <= MAX_TEXTS:
            raise invalid(field, f"{field} must have 1 to {MAX_TEXTS} texts, given {len(texts)}")
        for number, text in enumerate(texts):
            if not text:
                raise invalid(f"{field}[{number}]", f"{field}[{number}] must not be empty")
    num_first, num_second = len(pairs.first), len(pairs.second)
    if num_first not in (1, num_second):
        raise invalid(
            "second_texts",
            f"second_texts must have one text for each of first_texts ({num_first}), "
            f"given {num_second}",
        )


class Scorer:
    """Scores the pairs of one request by a model of either kind."""

    def __init__(self, pairs: Pairs, model: ModelInfo) -> None:
        """`pairs` have been checked."""
        self.model = model
        self.method = ScoreMethod.EMBEDDING_SIMILARITY
        if model.kind is ModelKind.SCORE:
            self.method = ScoreMethod.CROSS_ENCODER
        self._pairs = pairs
        self._similarities = Similarities(has_one_first=pairs.has_one_first)

    def field_of(self, number: int) -> str:
        """The field of the request that an encoded text, or pair of texts, comes from."""
        if self.method is ScoreMethod.CROSS_ENCODER:
            return _field_of_pair(number)
        return self._pairs.field_of_text(number)

    def scores(self, rows: Sequence[Sequence[float]]) -> list[float]:
        """The scores that the next rows of the engine complete: its scores, or vectors."""
        if self.method is ScoreMethod.CROSS_ENCODER:
            return [row[0] for row in rows]
        return self._similarities.add(rows)

    async def encode(
        self, tokenizer: TokenizerClient, options: TextOptions, is_search: bool
    ) -> list[EncodedText]:
        """The token ids of each pair together, or of each text. Raises MeshError.

        `is_search`: the first texts are queries and the second ones documents.
        """
        if self.method is ScoreMethod.CROSS_ENCODER:
            return await _encode_pairs(self._pairs, self.model, tokenizer, options)
        return await _encode_texts(self._pairs, self.model, tokenizer, options, is_search)


async def _encode_texts(
    pairs: Pairs,
    model: ModelInfo,
    tokenizer: TokenizerClient,
    options: TextOptions,
    is_search: bool,
) -> list[EncodedText]:
    total = TotalTokens()
    uses: tuple[InputUse, InputUse] = ("query", "document") if is_search else ("", "")
    first, second = [
        await encode_inputs(
            texts,
            model,
            tokenizer,
            options._replace(use=use),
            field,
            total,
        )
        for texts, use, field in (
            (pairs.first, uses[0], "first_texts"),
            (pairs.second, uses[1], "second_texts"),
        )
    ]
    if pairs.has_one_first:
        return first + second
    return [text for pair in zip(first, second, strict=True) for text in pair]


async def _encode_pairs(
    pairs: Pairs, model: ModelInfo, tokenizer: TokenizerClient, options: TextOptions
) -> list[EncodedText]:
    options = limited(options, model)
    total = TotalTokens()
    encoded: list[EncodedText] = []
    for numbers in _groups(pairs):
        firsts = [pairs.first_of(number) for number in numbers]
        seconds = [pairs.second[number] for number in numbers]
        fields = [_field_of_pair(number) for number in numbers]
        found = await encode_texts(firsts, seconds, fields, tokenizer, model, options)
        for number, each in zip(numbers, found, strict=True):
            check_length(_field_of_pair(number), each, options, model)
        total.add(found)
        encoded += found
    return encoded


def _field_of_pair(number: int) -> str:
    """That of its second text, which is mostly the longer one."""
    return f"second_texts[{number}]"


def _groups(pairs: Pairs) -> Iterator[range]:
    """Numbers of consecutive pairs that are encoded in one call."""
    begin = num_characters = 0
    for number, second in enumerate(pairs.second):
        length = len(second) + len(pairs.first_of(number))
        is_full = number - begin == GROUP_TEXTS or num_characters + length > GROUP_CHARACTERS
        if number > begin and is_full:
            yield range(begin, number)
            begin, num_characters = number, 0
        num_characters += length
    yield range(begin, len(pairs.second))
