"""Asks the questions of a new user about `examples/corpus`, and scores what is found and answered.

    python -m benchmarks.questions [--encoder FOLDER] [--out FILE]
    python -m benchmarks.questions --url http://localhost:8080 [--model NAME] [--grounded cite]

`benchmarks/retrieval_sets/questions.jsonl` has the questions: plain ones, in capitals, misspelled,
inflected, in other words than the documents have, in other languages, and some that no document
answers. Those that are `held_out` are a second set, which was looked at as well while the search
was changed, so that neither is independent of it.

The figures of each kind: whether the first result is of a right document, whether one of the five
first is, and whether the decision between an answer and "nothing was found" is right. Without
`--url` the search runs in this process, by words, or with `--encoder` also by vectors; where it
leaves the decision to the model, that counts as an answer. With `--url` a running gateway is asked,
such as that of `make run-local`, and `supported` is the share of the sentences of its answers that
the cited passage supports.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import httpx

from mesh.protocol.summary import Grounded
from orchestrator.index.build import main as build_index
from orchestrator.index.embedding import embed_passages
from orchestrator.index.writer import IndexWriter
from orchestrator.search.answering.decision import decide
from orchestrator.search.answering.relevance import Verdict
from orchestrator.search.conversation.rewriting import Rewrite
from orchestrator.search.retrieval import Retriever
from orchestrator.search.retrievers.hybrid import HybridRetriever
from orchestrator.search.retrievers.sqlite_index import IndexRetriever
from orchestrator.search.selection import NUM_CANDIDATES, select_results

ROOT = Path(__file__).resolve().parent.parent
CORPUS = ROOT / "examples" / "corpus"
QUESTIONS = Path(__file__).parent / "retrieval_sets" / "questions.jsonl"
NUM_RESULTS = 5


class Question(NamedTuple):
    """A question, and the documents that answer it; none if no document does."""

    kind: str
    question: str
    documents: Sequence[str]
    held_out: bool


class Outcome(NamedTuple):
    """What a search made of a question."""

    question: Question
    found: Sequence[str]
    """The documents of the first results, best first."""
    is_answered: bool
    answer: str = ""
    supported: Sequence[bool] = ()
    """Of each sentence of the answer, whether the passage that it cites supports it."""


def questions() -> list[Question]:
    """The set, in the order of its file."""
    return [Question(**json.loads(line)) for line in QUESTIONS.read_text().splitlines()]


async def search(asked: Sequence[Question], encoder: Path | None) -> list[Outcome]:
    """Retrieves and decides in this process, as the orchestrator does."""
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "index"
        if build_index([str(CORPUS), "--out", str(index)]) != 0:
            raise RuntimeError("the index cannot be built")
        retriever: Retriever = IndexRetriever(index)
        if encoder is not None:
            # Imported here: it loads torch.
            from benchmarks.retrieval import Encoder

            embedder = Encoder(encoder, 2, None)
            with closing(IndexWriter(index)) as writer:
                await embed_passages(writer.vectors, embedder, 64)
            retriever = HybridRetriever(IndexRetriever(index), embedder, 60.0)
        outcomes = [await _search(each, retriever) for each in asked]
        await retriever.close()
    return outcomes


async def _search(question: Question, retriever: Retriever) -> Outcome:
    results = await retriever.search(question.question, NUM_CANDIDATES, False)
    chosen = select_results(results, NUM_RESULTS)
    verdict = decide(Rewrite(question.question, [question.question]), chosen).verdict
    documents = [each.url.removesuffix(".md") for each in chosen]
    return Outcome(question, documents, verdict is not Verdict.NOTHING)


def ask(asked: Sequence[Question], url: str, fields: Mapping[str, str]) -> list[Outcome]:
    """Asks a running gateway, one question at a time."""
    outcomes = []
    with httpx.Client(base_url=url, timeout=120.0, trust_env=False) as client:
        for question in asked:
            body = {"query": question.question, "num_results": NUM_RESULTS, **fields}
            response = client.post("/api/v1/search", json=body)
            response.raise_for_status()
            found = response.json()
            documents = [each["url"].removesuffix(".md") for each in found["search_results"]]
            supported = [each["span"] is not None for each in found["citation_details"]]
            outcomes.append(
                Outcome(
                    question, documents, not found["nothing_found"], found["summary"], supported
                )
            )
    return outcomes


def scores(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """The shares of one kind's outcomes, 0 to 1."""
    count = len(outcomes)
    right = [each.is_answered == bool(each.question.documents) for each in outcomes]
    figures = {"questions": float(count), "right decision": sum(right) / count}
    if outcomes[0].question.documents:
        first = [each.found[:1] for each in outcomes]
        figures |= {
            "first": _share_right(outcomes, first),
            "in five": _share_right(outcomes, [each.found for each in outcomes]),
        }
    supported = [each for outcome in outcomes for each in outcome.supported]
    if supported:
        figures["supported"] = sum(supported) / len(supported)
    return figures


def _share_right(outcomes: Sequence[Outcome], found: Sequence[Sequence[str]]) -> float:
    pairs = zip(outcomes, found, strict=True)
    right = [not set(each).isdisjoint(outcome.question.documents) for outcome, each in pairs]
    return sum(right) / len(right)


def report(outcomes: Sequence[Outcome]) -> dict[str, dict[str, float]]:
    """The scores by kind of question, and of all with an answer, in both sets."""
    groups: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        question = outcome.question
        half = "second set" if question.held_out else "first set"
        groups[question.kind].append(outcome)
        groups[f"{'answerable' if question.documents else 'unanswerable'}, {half}"].append(outcome)
    return {name: scores(group) for name, group in groups.items()}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.questions", description=__doc__)
    parser.add_argument("--encoder", type=Path, help="folder of the encoder")
    parser.add_argument("--url", help="gateway to ask")
    parser.add_argument("--model", help="model that answers")
    parser.add_argument("--grounded", choices=list(Grounded), help="constraint of the answers")
    parser.add_argument("--show", action="store_true", help="print wrong outcomes and answers")
    parser.add_argument("--out", type=Path, help="file for the figures as JSON")
    arguments = parser.parse_args()
    asked = questions()
    if arguments.url:
        given = {"model": arguments.model, "grounded": arguments.grounded}
        outcomes = ask(asked, arguments.url, {key: each for key, each in given.items() if each})
    else:
        outcomes = asyncio.run(search(asked, arguments.encoder))
    figures = report(outcomes)
    for name, values in figures.items():
        print(f"{name:28}" + "  ".join(f"{key} {value:.2f}" for key, value in values.items()))
    for outcome in outcomes if arguments.show else ():
        question = outcome.question
        is_right = outcome.is_answered == bool(question.documents)
        print(f"\n{'right' if is_right else 'WRONG'} {question.kind}: {question.question}")
        print(f"  {outcome.found[:2]} {outcome.answer}")
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
