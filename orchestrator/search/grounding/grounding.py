"""Grounding: the citations of each sentence of a summary, with the spans that support it.

`ground` takes time in proportion to the summary's length; offsets count characters (Unicode code
points).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from orchestrator.search.grounding.citations import CITATION, citation_numbers
from orchestrator.search.grounding.sentences import Span, sentence_spans
from orchestrator.search.grounding.support import SupportFinder
from orchestrator.search.prompt import NOTHING_FOUND

# A run of white space is searched from its beginning only.
_SPACED_CITATION = re.compile(rf"(?<!\s)\s*{CITATION.pattern}")


class Citation(NamedTuple):
    """A sentence of a summary, and one passage that it cites."""

    position: int
    """Number of the cited passage; 0 if the sentence cites none."""
    sentence: Span
    """Span of the sentence in the summary."""
    span: Span | None
    """Supporting span in the passage; None if the passage does not support the sentence."""


def ground(summary: str, passages: Mapping[int, str]) -> list[Citation]:
    """Returns the citations of each sentence of `summary`, in the order of the text.

    A sentence with several citations has one entry for each. `passages` maps numbers to texts and
    must contain every number that `summary` cites. The sentence `NOTHING_FOUND` makes no claim
    and has no entry. Takes milliseconds for a long summary, so it is for a thread.
    """
    finders: dict[int, SupportFinder] = {}
    citations: list[Citation] = []
    for sentence in _sentences(summary):
        if sentence.text == NOTHING_FOUND:
            continue
        for number in sentence.numbers or [0]:
            if number and number not in finders:
                finders[number] = SupportFinder(passages[number])
            span = finders[number].find(sentence.text) if number else None
            citations.append(Citation(number, sentence.span, span))
    return citations


class _Sentence(NamedTuple):
    text: str
    span: Span
    numbers: list[int]


def _sentences(summary: str) -> Iterator[_Sentence]:
    """Sentences without their citations; a citation belongs to the sentence before it."""
    parts, offsets = list[str](), list[int]()
    citations: list[tuple[int, list[int]]] = []
    end = 0
    for found in _SPACED_CITATION.finditer(summary):
        parts.append(summary[end : found.start()])
        offsets.extend(range(end, found.start()))
        citations.append((len(offsets), citation_numbers(found[0])))
        end = found.end()
    parts.append(summary[end:])
    offsets.extend(range(end, len(summary)))
    text = "".join(parts)
    spans = [span for span in sentence_spans(text) if any(map(str.isalnum, text[slice(*span)]))]
    cited = iter([*citations, (len(text) + 1, [])])
    offset, numbers = next(cited)
    for index, (begin, end) in enumerate(spans):
        # A citation before the first sentence belongs to it.
        last = spans[index + 1].begin if index + 1 < len(spans) else len(text)
        own: dict[int, None] = {}
        while offset <= last:
            own |= dict.fromkeys(numbers)
            offset, numbers = next(cited)
        yield _Sentence(text[begin:end], Span(offsets[begin], offsets[end - 1] + 1), list(own))
