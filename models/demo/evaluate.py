"""Evaluates the demo model on held-out documents: python -m models.demo.evaluate

Answers held-out questions with the project's engine and chat template, with greedy decoding, under
the constraint of a search (`--grounded`) or without one. The report has the shares of answers in
whole sentences, copied text, correct citations, repetition, and coverage of the question's key
words; of sentences that their passage supports; and of right decisions whether anything was found.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import transformers

from inference.engine.engine import Engine
from inference.model.loading import EngineOptions, load_engine
from inference.sampling.sampling_params import SamplingParams
from inference.scheduler.sequence import Sequence as EngineSequence
from mesh.hub.model_folder import model_folder
from mesh.protocol.summary import Grounded
from models.demo import corpus
from models.demo.decisions import decision_cases
from models.demo.grounding_figures import (
    decision_summary,
    grounding_of,
    grounding_summary,
)
from models.demo.pairs import Difficulty, Pair, Pairs, Passage
from models.demo.rule import key_words, stems
from orchestrator.index.documents import parse
from orchestrator.search.answering.constraint import answer_constraint
from orchestrator.search.answering.line_marks import line_marks
from orchestrator.search.answering.relevance import PassageWords, Verdict
from orchestrator.search.answering.relevance import judge as judge_relevance
from orchestrator.search.grounding.sentences import split_sentences
from orchestrator.search.prompt import NOTHING_FOUND, search_messages
from orchestrator.search.prompt import Passage as PromptPassage

FOLDER = Path(__file__).parent
HELD_OUT = FOLDER / "held_out.jsonl"
CORPUS = FOLDER.parent.parent / "examples" / "corpus"
MAX_TOKENS = 256
DIFFICULTY = Difficulty(5, 6, 5, True)

_CITED = re.compile(r"(.+?[.!?][\"'”’)]*) \[(\d+)\](?: |$)")


class Judged(NamedTuple):
    """The measurements of one answer; None if one does not apply."""

    whole: bool | None
    grams_found: int
    num_grams: int
    citations_right: int
    num_citations: int
    repeats: bool | None
    covers: bool | None
    found_nothing_rightly: bool | None


def judge(pair: Pair, answer: str) -> Judged:
    """Compares an answer with the passages of its prompt."""
    keys = key_words(pair.question)
    texts = [" ".join(passage.sentences) for passage in pair.passages]
    sentences = [s for text in texts for s in split_sentences(text)]
    scores = [len(keys & stems(sentence)) for sentence in sentences]
    nothing_fits = not any(scores)
    if answer == NOTHING_FOUND or nothing_fits:
        rightly = (answer == NOTHING_FOUND) == nothing_fits
        covers = False if len(keys) in scores and keys else None
        return Judged(None, 0, 0, 0, 0, None, covers, rightly)
    cited = _CITED.findall(answer)
    whole = bool(cited) and "".join(f"{s} [{n}] " for s, n in cited).strip() == answer
    whole = whole and all(s[0].isupper() or s[0].isdigit() or s[0] in "\"'“(" for s, _ in cited)
    grams = [gram for sentence, _ in cited for gram in grams_of(sentence)]
    known = {gram for text in texts for gram in grams_of(text)}
    right = sum(int(number) in sources_of(sentence, texts) for sentence, number in cited)
    best = max(scores)
    covers = None
    if best == len(keys):
        covers = any(keys <= stems(sentence) for sentence, _ in cited)
    return Judged(
        whole=whole,
        grams_found=sum(gram in known for gram in grams),
        num_grams=len(grams),
        citations_right=right,
        num_citations=len(cited),
        repeats=max(Counter(s for s, _ in cited).values(), default=0) > 1,
        covers=covers,
        found_nothing_rightly=None,
    )


def grams_of(text: str) -> list[tuple[str, ...]]:
    """The 4-grams of a text's words."""
    words = text.split()
    return [tuple(words[at : at + 4]) for at in range(len(words) - 3)]


def sources_of(sentence: str, texts: Sequence[str]) -> set[int]:
    """The numbers, from 1, of the passages that share the most 4-grams with the sentence."""
    grams = set(grams_of(sentence)) or {(sentence,)}
    shared = [len(grams & (set(grams_of(text)) | {(text,)})) for text in texts]
    return {number for number, count in enumerate(shared, 1) if count and count == max(shared)}


def answer_all(
    engine: Engine,
    tokenizer: object,
    pairs: Sequence[Pair],
    grounded: Grounded | None = None,
    eos_token_ids: Sequence[int] = (1,),
) -> list[str]:
    """Greedy answers, batched by the engine; `grounded` adds the constraint of a search."""
    sequences = []
    for number, pair in enumerate(pairs):
        passages = [PromptPassage(p.title, " ".join(p.sentences)) for p in pair.passages]
        words = [part for each in passages for part in PassageWords.windows(each.title, each.text)]
        verdict = judge_relevance(pair.question, words)
        if grounded is not None and verdict is Verdict.NOTHING:
            passages = []
        messages = [m._asdict() for m in search_messages(pair.question, passages)]
        ids = tokenizer.apply_chat_template(  # type: ignore[attr-defined]
            messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        constraint = None
        if grounded is not None:
            num_lines = sum(len(split_sentences(each.text)) for each in passages)
            marks = line_marks(ids, num_lines, _token_id(tokenizer))
            constraint = answer_constraint(grounded, pair.question, passages, verdict, marks)
        params = SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0, constraint=constraint)
        sequence = EngineSequence(str(number), ids, params, eos_token_ids=list(eos_token_ids))
        engine.add(sequence)
        sequences.append(sequence)
    while engine.has_work:
        engine.step()
    return [
        tokenizer.decode(list(s.token_ids[s.num_prompt_tokens :]), skip_special_tokens=True)  # type: ignore[attr-defined]
        for s in sequences
    ]


def _token_id(tokenizer: object) -> Callable[[str], int | None]:
    vocabulary: Mapping[str, int] = tokenizer.get_vocab()  # type: ignore[attr-defined]
    return vocabulary.get


def summary(judged: Iterable[Judged]) -> dict[str, float | int | None]:
    """The aggregated figures, in percent."""
    rows = list(judged)

    def share(values: Iterable[bool | None]) -> float | None:
        known = [value for value in values if value is not None]
        return round(100 * sum(known) / len(known), 1) if known else None

    grams = sum(row.num_grams for row in rows)
    citations = sum(row.num_citations for row in rows)
    return {
        "answers": len(rows),
        "whole_sentences": share(row.whole for row in rows),
        "grams_from_passages": round(100 * sum(r.grams_found for r in rows) / max(grams, 1), 1),
        "citations_right": round(100 * sum(r.citations_right for r in rows) / max(citations, 1), 1),
        "repeated_sentence": share(row.repeats for row in rows),
        "covers_key_words": share(row.covers for row in rows),
        "nothing_found_rightly": share(row.found_nothing_rightly for row in rows),
    }


def corpus_pairs(number: int) -> list[Pair]:
    """Pairs from examples/corpus, which is not in the training data."""
    runs = []
    for path in sorted(CORPUS.glob("*.md")):
        document = parse(path, path.read_bytes())
        for passage in document.passages:
            sentences = split_sentences(passage.text)
            if len(sentences) >= 2:
                runs.append(corpus.Run("corpus", document.title, sentences))
    pairs = Pairs(runs)
    rng = random.Random(7)
    return [pairs.sample(rng, DIFFICULTY) for _ in range(number)]


def held_out_pairs() -> list[Pair]:
    """The pairs of `HELD_OUT`, from packages that are not in the training data."""
    lines = [json.loads(line) for line in HELD_OUT.open()]
    return [
        Pair(line["question"], [Passage(p["title"], p["sentences"]) for p in line["passages"]])
        for line in lines
    ]


def sample_held_out(number: int) -> None:
    """Samples pairs and writes them to `HELD_OUT`; needs the packages of the corpus."""
    runs = corpus.build(FOLDER / ".work" / "debs")
    pairs = Pairs([run for run in runs if run.package in corpus.HELD_OUT_PACKAGES])
    rng = random.Random(11)
    with HELD_OUT.open("w") as out:
        for _ in range(number):
            pair = pairs.sample(rng, DIFFICULTY)
            passages = [passage._asdict() for passage in pair.passages]
            out.write(json.dumps({"question": pair.question, "passages": passages}) + "\n")


def figures_of(
    source: str, pairs: Sequence[Pair], answers: Sequence[str]
) -> dict[str, Mapping[str, float | int | None]]:
    """The figures of the answers to the questions of one source, by their names."""
    judged = [judge(pair, answer) for pair, answer in zip(pairs, answers, strict=True)]
    by_length = defaultdict(list)
    for pair, each in zip(pairs, judged, strict=True):
        by_length[min(len(key_words(pair.question)), 3)].append(each)
    figures: dict[str, Mapping[str, float | int | None]] = {source: summary(judged)}
    for length, rows in sorted(by_length.items()):
        words = "1 key word" if length == 1 else f"{length}{'+' * (length == 3)} key words"
        figures[f"{source}, {words}"] = summary(rows)
    sentences = [grounding_of(pair, answer) for pair, answer in zip(pairs, answers, strict=True)]
    figures[f"{source}, sentences"] = grounding_summary(sentences)
    return figures


def main() -> None:
    """The command-line entry point."""
    parser = argparse.ArgumentParser(prog="python -m models.demo.evaluate", description=__doc__)
    parser.add_argument("--model", type=Path, default=FOLDER, help="the model's folder")
    parser.add_argument("--limit", type=int, default=200, help="maximum number of pairs per source")
    parser.add_argument("--show", type=int, default=0, help="number of answers to print")
    parser.add_argument("--draw", action="store_true", help="sample new held-out pairs")
    parser.add_argument(
        "--grounded", choices=[*Grounded, "none"], default=Grounded.QUOTE, help="the constraint"
    )
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    if arguments.draw:
        sample_held_out(arguments.limit)
    folder = model_folder(str(arguments.model), ["*"])
    options = EngineOptions.defaults(folder, "demo")
    engine = load_engine(replace(options, max_num_waiting=10_000, num_speculative_tokens=0))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    grounded = None if arguments.grounded == "none" else Grounded(arguments.grounded)
    sources = {
        "held-out packages": held_out_pairs()[: arguments.limit],
        "examples/corpus": corpus_pairs(arguments.limit),
    }
    figures: dict[str, Mapping[str, float | int | None]] = {}
    for source, pairs in sources.items():
        started = time.monotonic()

        def answer(asked: Sequence[Pair]) -> list[str]:
            return answer_all(engine, tokenizer, asked, grounded, [tokenizer.eos_token_id])

        answers = answer(pairs)
        figures |= figures_of(source, pairs, answers)
        cases = decision_cases(pairs)
        decided = answer([case.pair for case in cases])
        figures[f"{source}, decisions"] = decision_summary(cases, decided)
        print(f"{source}: {len(pairs)} answers in {time.monotonic() - started:.0f} s")
        for pair, text in list(zip(pairs, answers, strict=True))[: arguments.show]:
            print(f"\n  {pair.question}\n    {text}")
    for source, row in figures.items():
        print(f"\n{source}")
        for name, value in row.items():
            print(f"  {name:<24}{value}")
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
