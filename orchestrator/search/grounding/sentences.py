"""Splits running text into sentences."""

from __future__ import annotations

from typing import NamedTuple

from sentencex import segment


class Span(NamedTuple):
    """A part of a text: its first character, and the one behind its last."""

    begin: int
    end: int


def split_sentences(text: str, language: str = "en") -> list[str]:
    """The sentences of `text`, stripped, inner white space folded, empty ones dropped."""
    return [
        folded for sentence in segment(language, text) if (folded := " ".join(sentence.split()))
    ]


def sentence_spans(text: str, language: str = "en") -> list[Span]:
    """Where the sentences of `text` stand, without the white space around them."""
    spans = []
    end = 0
    for sentence in segment(language, text):
        stripped = sentence.strip()
        if not stripped:
            continue
        begin = text.find(stripped, end)
        assert begin >= 0, "a sentence is a part of the text"
        end = begin + len(stripped)
        spans.append(Span(begin, end))
    return spans
