"""Figures of answers: sentences that their passages support, and right decisions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from models.demo.decisions import Case
from models.demo.pairs import Pair
from orchestrator.search.grounding.citations import CITATION, CitationFilter
from orchestrator.search.grounding.grounding import ground
from orchestrator.search.prompt import NOTHING_FOUND

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


class Grounding(NamedTuple):
    """How an answer is bound to its passages, in numbers of sentences."""

    answered: bool
    sentences: int
    quoted: int
    """Sentences that are a part of the passage that they cite."""
    supported: int
    repeated: int
    numbers: int
    numbers_found: int
    """Numbers in the sentences that occur in the cited passage."""


def grounding_of(pair: Pair, answer: str) -> Grounding:
    """Verifies an answer as the orchestrator does."""
    texts = dict(enumerate((" ".join(p.sentences) for p in pair.passages), 1))
    if answer.strip() == NOTHING_FOUND:
        return Grounding(False, 0, 0, 0, 0, 0, 0)
    kept = CitationFilter(texts)
    checked = kept.push(answer) + kept.flush()
    details = ground(checked, texts, quoted=True)
    sentences = [checked[slice(*each.sentence)] for each in details]
    quoted = [
        each.number is not None and sentence in texts[each.number]
        for each, sentence in zip(details, sentences, strict=True)
    ]
    numbers = [
        (number, each.number is not None and number in _NUMBER.findall(texts[each.number]))
        for each, sentence in zip(details, sentences, strict=True)
        for number in _NUMBER.findall(CITATION.sub("", sentence))
    ]
    return Grounding(
        True,
        len(sentences),
        sum(quoted),
        sum(each.span is not None for each in details),
        len(sentences) - len(set(sentences)),
        len(numbers),
        sum(found for _, found in numbers),
    )


def grounding_summary(rows: Sequence[Grounding]) -> dict[str, float | int | None]:
    """The aggregated figures, in percent of sentences, numbers and answers."""

    def share(part: int, whole: int) -> float | None:
        return round(100 * part / whole, 1) if whole else None

    sentences = sum(row.sentences for row in rows)
    numbers = sum(row.numbers for row in rows)
    return {
        "questions": len(rows),
        "answered": share(sum(row.answered for row in rows), len(rows)),
        "sentences": sentences,
        "sentences_quoted": share(sum(row.quoted for row in rows), sentences),
        "sentences_supported": share(sum(row.supported for row in rows), sentences),
        "sentences_repeated": sum(row.repeated for row in rows),
        "numbers": numbers,
        "numbers_in_passage": share(sum(row.numbers_found for row in rows), numbers),
    }


def decision_summary(cases: Sequence[Case], answers: Sequence[str]) -> dict[str, float | int]:
    """The shares of right decisions, in percent: of cases with an answer, and without one."""
    right: dict[bool, list[bool]] = {True: [], False: []}
    for case, answer in zip(cases, answers, strict=True):
        is_answer = answer.strip() != NOTHING_FOUND
        right[case.is_answered].append(is_answer == case.is_answered)
    everything = right[True] + right[False]
    return {
        "cases": len(cases),
        "right": round(100 * sum(everything) / len(everything), 1),
        "right_with_an_answer": round(100 * sum(right[True]) / len(right[True]), 1),
        "right_without_one": round(100 * sum(right[False]) / len(right[False]), 1),
    }
