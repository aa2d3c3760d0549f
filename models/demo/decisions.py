"""Questions whose answer is, or is not, among the passages that a search finds.

The passages of all pairs are the documents of an index. Each question is searched for twice: in all
documents, and without its own and without those of which a sentence has all its key words. So half
of the cases have passages that share words with the question and do not answer it.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from models.demo.pairs import Pair, Passage
from models.demo.rule import key_words, stems
from orchestrator.index.build import main as build_index
from orchestrator.search.grounding.sentences import split_sentences
from orchestrator.search.retrieval import SearchResult
from orchestrator.search.retrievers.sqlite_index import IndexRetriever
from orchestrator.search.selection import NUM_CANDIDATES, select_for_prompt, select_results

NUM_RESULTS = 5


class Case(NamedTuple):
    """A question with the passages that were found, and whether they answer it."""

    pair: Pair
    is_answered: bool


def decision_cases(pairs: Sequence[Pair]) -> list[Case]:
    """At most two cases for each pair."""
    with tempfile.TemporaryDirectory() as folder:
        documents, index = Path(folder) / "documents", Path(folder) / "index.sqlite3"
        documents.mkdir()
        for number, pair in enumerate(pairs):
            for place, passage in enumerate(pair.passages):
                text = f"# {passage.title}\n\n{' '.join(passage.sentences)}\n"
                (documents / f"{number}-{place}.md").write_text(text)
        if build_index([str(documents), "--out", str(index)]) != 0:
            raise RuntimeError("the index cannot be built")
        return asyncio.run(_search(index, pairs))


async def _search(index: Path, pairs: Sequence[Pair]) -> list[Case]:
    retriever = IndexRetriever(index)
    cases = []
    try:
        for number, pair in enumerate(pairs):
            keys = key_words(pair.question)
            found = await retriever.search(pair.question, NUM_CANDIDATES, False)
            if any(keys <= stems(s) for passage in pair.passages for s in passage.sentences):
                cases.append(Case(_with_results(pair, found), True))
            others = [
                result
                for result in found
                if not result.url.startswith(f"{number}-")
                and not any(keys <= stems(s) for s in split_sentences(result.text))
            ]
            cases.append(Case(_with_results(pair, others), False))
    finally:
        await retriever.close()
    return cases


def _with_results(pair: Pair, found: Sequence[SearchResult]) -> Pair:
    results = select_for_prompt(select_results(found, NUM_RESULTS))
    return Pair(pair.question, [Passage(r.title, split_sentences(r.text)) for r in results])
