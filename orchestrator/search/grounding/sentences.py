"""Sentence splitting, in linear time."""

from __future__ import annotations

import re
from collections.abc import Iterator

from sentencex import segment

from mesh.protocol.summary import Span

MAX_BLOCK_CHARACTERS = 2000
"""Longest text that is segmented at once: `segment` takes quadratic time for Chinese text."""

_BREAK = re.compile(r"\n\s*\n|[\u3002\uff01\uff1f]|[.!?]['\")\]]*\s+")
"""Where a longer text is cut: after a paragraph or a sentence."""


def split_sentences(text: str, language: str = "en") -> list[str]:
    """The sentences of `text`, with each run of white space replaced by one space."""
    return [
        folded for sentence in _segment(text, language) if (folded := " ".join(sentence.split()))
    ]


def sentence_spans(text: str, language: str = "en") -> list[Span]:
    """The spans of the sentences of `text`, without leading and trailing white space."""
    spans = []
    end = 0
    for sentence in _segment(text, language):
        stripped = sentence.strip()
        if not stripped:
            continue
        begin = text.find(stripped, end)
        assert begin >= 0, "the sentence must occur in the text"
        end = begin + len(stripped)
        spans.append(Span(begin, end))
    return spans


def _segment(text: str, language: str) -> Iterator[str]:
    """The sentences of `text`, which together are the whole text."""
    begin = 0
    while len(text) - begin > MAX_BLOCK_CHARACTERS:
        end = _block_end(text, begin)
        yield from segment(language, text[begin:end])
        begin = end
    yield from segment(language, text[begin:] if begin else text)


def _block_end(text: str, begin: int) -> int:
    """Where to cut a text that is too long: at a sentence, else at a space, else anywhere."""
    middle, last = begin + MAX_BLOCK_CHARACTERS // 2, begin + MAX_BLOCK_CHARACTERS
    ends = [found.end() for found in _BREAK.finditer(text, middle, last)]
    if ends:
        return ends[-1]
    space = text.rfind(" ", middle, last)
    return space + 1 if space >= 0 else last
