"""Decides what the prompt of an answer has: the question as it is answered, and the passages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from orchestrator.search.answering.relevance import PassageWords, Verdict, judge
from orchestrator.search.answering.respelling import respelled
from orchestrator.search.conversation.rewriting import Rewrite
from orchestrator.search.prompt import Passage
from orchestrator.search.retrieval import SearchResult
from orchestrator.search.selection import select_for_prompt


class Decision(NamedTuple):
    """The question with corrected words, its passages, and what they have to say about it."""

    question: Rewrite
    passages: Sequence[Passage]
    """None if they are about something else."""
    verdict: Verdict


def decide(question: Rewrite, results: Sequence[SearchResult]) -> Decision:
    """The decision for a question and the results that were found for it."""
    found = select_for_prompt(results)
    passages = [Passage(result.title, result.text) for result in found]
    queries = dict.fromkeys([question.question, *question.searches])
    corrections = _corrections(results)
    correct = {query: respelled(query, passages, corrections) for query in queries}
    words = [part for each in passages for part in PassageWords.windows(*each)]
    similarity = max((each.similarity or 0.0 for each in found), default=0.0)
    verdict = max(judge(query, words, similarity) for query in correct.values())
    question = Rewrite(correct[question.question], [correct[each] for each in question.searches])
    return Decision(question, passages if verdict is not Verdict.NOTHING else (), verdict)


def _corrections(results: Sequence[SearchResult]) -> Mapping[str, str] | None:
    """The corrections of all searches; None if none of them reports any."""
    known = [each.corrections for each in results if each.corrections is not None]
    return dict(pair for each in known for pair in each) if known else None
