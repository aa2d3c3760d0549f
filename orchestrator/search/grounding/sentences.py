"""Sentence splitting."""

from __future__ import annotations

from typing import NamedTuple

from sentencex import segment


class Span(NamedTuple):
    """A range of characters in a text; `end` is exclusive."""

    begin: int
    end: int


def split_sentences(text: str, language: str = "en") -> list[str]:
    """The sentences of `text`, with each run of white space replaced by one space."""
    return [
        folded for sentence in segment(language, text) if (folded := " ".join(sentence.split()))
    ]


def sentence_spans(text: str, language: str = "en") -> list[Span]:
    """The spans of the sentences of `text`, without leading and trailing white space."""
    spans = []
    end = 0
    for sentence in segment(language, text):
        stripped = sentence.strip()
        if not stripped:
            continue
        begin = text.find(stripped, end)
        assert begin >= 0, "the sentence must occur in the text"
        end = begin + len(stripped)
        spans.append(Span(begin, end))
    return spans
