"""The constraint of a grounded answer, as a grammar in Lark's notation.

`quote`: up to three different sentences of the passages, each followed by its citation:

    start: first::0x0
    first::_  : q0 more::set_bit(0) %if bit_clear(0)
    answer::_ : q0 more::set_bit(0) %if bit_clear(0)
              | q1 more::set_bit(1) %if bit_clear(1)
    more::_ : "" | " " answer::_ %if bit_count_lt(_, 3)
    q0: "Raft elects one leader per term. [1]"
    q1: "A leader sends heartbeats. [1]"

The rule's parameter is the set of quoted sentences (llguidance's parametric grammars), so none
can be repeated. The first sentence says what the subject of the question is, if there is such a
sentence and the question has no other words: a small model often does not choose it. Compiling
and following such a grammar takes milliseconds.

`cite`: sentences of the model's own words, each of which ends in the number of a passage.

A vocabulary may have a token that marks each quotable line of the prompt, as that of
`models/demo` does; the quotation of the line begins with the token.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

from mesh.protocol.constraints import ConstraintForm, OutputConstraint
from mesh.protocol.summary import Grounded
from orchestrator.search.answering.definitions import defines
from orchestrator.search.answering.relevance import Verdict, stems, subject_words
from orchestrator.search.grounding.citations import CITATION
from orchestrator.search.grounding.sentences import split_sentences
from orchestrator.search.language.languages import stem
from orchestrator.search.prompt import NOTHING_FOUND, Passage

MAX_SENTENCES = 3
"""Maximum sentences of an answer, as the instructions in the prompt say."""

MAX_QUOTABLE = 64
"""Maximum sentences to choose from: a grammar's parameter has 64 bits."""

MAX_SENTENCE_CHARACTERS = 400
"""Maximum characters of a sentence that the model writes."""

_ENDS = ".!?\u3002\uff01\uff1f\u061f\u0964"
"""Ends of sentences; the last ones are those of Chinese, Arabic and Hindi."""

_ABBREVIATIONS = r"(?:e\.g|i\.e|vs|cf|approx|Dr|Mr|Mrs|Ms|St|No)\. "


class LineMarks(NamedTuple):
    """Ids of the tokens that precede the quotable lines of a prompt, in their order."""

    lines: Sequence[int] = ()
    """Empty if the vocabulary has no such tokens."""
    nothing_found: int | None = None
    """The token that precedes `NOTHING_FOUND`."""


NO_MARKS = LineMarks()


class _Quotable(NamedTuple):
    text: str
    endings: Sequence[tuple[int, int | None]]
    """Numbers of the passages that have the sentence, and the mark of its line."""


def answer_constraint(
    grounded: Grounded,
    query: str,
    passages: Sequence[Passage],
    verdict: Verdict,
    marks: LineMarks = NO_MARKS,
) -> OutputConstraint:
    """The constraint of an answer to `query` from `passages`, numbered from 1.

    Without passages, or if they are about something else, the answer is `NOTHING_FOUND`.
    """
    nothing = _marked(_text(NOTHING_FOUND), marks.nothing_found)
    if verdict is Verdict.NOTHING or not passages:
        return _grammar([f"start: {nothing}"])
    if grounded is Grounded.CITE:
        return _grammar(_cite_rules(len(passages), nothing))
    quotable = _quotable(query, passages, marks.lines)
    if not quotable:
        return _grammar([f"start: {nothing}"])
    other = f" | {nothing}" if verdict is Verdict.UNSURE else ""
    return _grammar([f"start: first::0x0{other}", *_quote_rules(quotable, query)])


def _grammar(rules: Sequence[str]) -> OutputConstraint:
    return OutputConstraint(ConstraintForm.GRAMMAR, "\n".join(rules) + "\n")


def _quote_rules(quotable: Sequence[_Quotable], query: str) -> list[str]:
    choices = [f"q{bit} more::set_bit({bit}) %if bit_clear({bit})" for bit in range(len(quotable))]
    wanted = set(map(stem, subject_words(query)))
    defining = [choices[bit] for bit, each in enumerate(quotable) if defines(each.text, wanted)]
    most = min(MAX_SENTENCES, len(quotable))
    return [
        f"first::_ : {' | '.join(defining or choices)}",
        f"answer::_ : {' | '.join(choices)}",
        f'more::_ : "" | " " answer::_ %if bit_count_lt(_, {most})',
        *(f"q{bit}: {_quotation(each)}" for bit, each in enumerate(quotable)),
    ]


def _quotation(quotable: _Quotable) -> str:
    spelled = [
        _marked(_text(f"{quotable.text} [{number}]"), mark) for number, mark in quotable.endings
    ]
    return " | ".join(spelled)


def _cite_rules(num_passages: int, nothing: str) -> list[str]:
    numbers = "|".join(str(number) for number in range(1, num_passages + 1))
    inside = rf"{_ABBREVIATIONS}|[^\[\]\n{_ENDS}]|[.!?]+[^\s\[\]{_ENDS}]"
    return [
        f'start: sentence (" " sentence){{0,{MAX_SENTENCES - 1}}} | {nothing}',
        'sentence: SENTENCE " " CITATION',
        rf"SENTENCE: /[^\s\[\]{_ENDS}](?:{inside}){{1,{MAX_SENTENCE_CHARACTERS}}}[{_ENDS}]/",
        rf"CITATION: /\[(?:{numbers})\]/",
    ]


def _quotable(query: str, passages: Sequence[Passage], marks: Sequence[int]) -> list[_Quotable]:
    """The sentences that may be quoted: those about the query, and the sentences after them."""
    lines = [
        (number, sentence)
        for number, passage in enumerate(passages, 1)
        for sentence in split_sentences(passage.text)
    ]
    endings: dict[str, list[tuple[int, int | None]]] = {}
    for line in _about(query, lines):
        number, sentence = lines[line]
        if CITATION.search(sentence):
            continue  # its numbers are not those of the passages
        mark = marks[line] if len(marks) == len(lines) else None
        endings.setdefault(sentence, []).append((number, mark))
    return [_Quotable(text, each) for text, each in endings.items()][:MAX_QUOTABLE]


def _about(query: str, lines: Sequence[tuple[int, str]]) -> list[int]:
    """The indices of the sentences with at least half as many of the query's words as the best one.

    The sentence after one of them often explains it, so it is included. All sentences if none has a
    word of the query: the passages then were found by their meaning.
    """
    wanted = set(map(stem, subject_words(query)))
    scores = [len(wanted & stems(sentence)) for _, sentence in lines]
    least = (max(scores, default=0) + 1) // 2
    if not least:
        return list(range(len(lines)))
    about = {index for index, score in enumerate(scores) if score >= least}
    following = {index + 1 for index in about if index + 1 < len(lines)}
    same = {index for index in following if lines[index][0] == lines[index - 1][0]}
    return sorted(about | same)


def _marked(literal: str, mark: int | None) -> str:
    return literal if mark is None else f"<[{mark}]> {literal}"


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
