"""Grounding: the citations of each sentence of a summary, with the spans that support it.

`ground` takes time in proportion to the summary's length; offsets count characters (Unicode code
points).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from mesh.protocol.summary import Citation, Span
from orchestrator.search.grounding.citations import CITATION, citation_numbers
from orchestrator.search.grounding.sentences import sentence_spans
from orchestrator.search.grounding.support import SupportFinder
from orchestrator.search.prompt import NOTHING_FOUND

# A run of white space is searched from its beginning only.
_SPACED_CITATION = re.compile(rf"(?<!\s)\s*{CITATION.pattern}")


def ground(summary: str, passages: Mapping[int, str], *, quoted: bool = False) -> list[Citation]:
    """Returns the citations of each sentence of `summary`, in the order of the text.

    A sentence with several citations has one entry for each. One without citation is attributed to
    the first passage that equals a part of it or else supports it, if there is one. `passages` maps
    numbers to texts and must contain every number that `summary` cites. `quoted`: the summary was
    generated under the constraint of quotations, so its citations end its sentences. The sentence
    `NOTHING_FOUND` makes no claim and has no entry. Takes milliseconds for a long summary, so it is
    for a thread.
    """
    if quoted:
        quotations = _quotations(summary, passages)
        if quotations is not None:
            return quotations
    finders: dict[int, SupportFinder] = {}
    citations: list[Citation] = []
    for sentence in _sentences(summary):
        if sentence.text == NOTHING_FOUND:
            continue
        for number in sentence.numbers:
            finder = _finder(finders, passages, number)
            citations.append(Citation(number, sentence.span, finder.find(sentence.text)))
        if not sentence.numbers:
            finders.update((number, _finder(finders, passages, number)) for number in passages)
            citations.append(_attributed(sentence, finders, passages))
    return citations


def _finder(
    finders: dict[int, SupportFinder], passages: Mapping[int, str], number: int
) -> SupportFinder:
    if number not in finders:
        finders[number] = SupportFinder(passages[number])
    return finders[number]


def _quotations(summary: str, passages: Mapping[int, str]) -> list[Citation] | None:
    """The citations of a summary in which each cited text is a part of its passage.

    None if another text is in it. Quoted sentences need no end that a sentence splitter would find.
    """
    citations: list[Citation] = []
    end = 0
    for found in _SPACED_CITATION.finditer(summary):
        text = summary[end : found.start()].strip()
        begin = summary.index(text, end)
        for number in citation_numbers(found[0]):
            place = passages[number].find(text)
            if place < 0 or not text:
                return None
            span = Span(place, place + len(text))
            citations.append(Citation(number, Span(begin, begin + len(text)), span))
        end = found.end()
    return None if summary[end:].strip() else citations


class _Sentence(NamedTuple):
    text: str
    span: Span
    numbers: list[int]


def _attributed(
    sentence: _Sentence, finders: Mapping[int, SupportFinder], passages: Mapping[int, str]
) -> Citation:
    """The citation of a sentence that has none, by the passage that supports it, if one does."""
    for find in (SupportFinder.find_copy, SupportFinder.find):
        for number in passages:
            span = find(finders[number], sentence.text)
            if span is not None:
                return Citation(number, sentence.span, span, attributed=True)
    return Citation(None, sentence.span, None)


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
