"""Grounded answers: what the engine's grammar library lets a model write."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from inference.structured_output.vocabulary import Vocabulary, VocabularySource
from mesh.protocol.constraints import OutputConstraint
from mesh.protocol.summary import Grounded
from orchestrator.search.answering.constraint import (
    MAX_QUOTABLE,
    MAX_SENTENCES,
    LineMarks,
    answer_constraint,
)
from orchestrator.search.answering.line_marks import line_marks
from orchestrator.search.answering.relevance import Verdict
from orchestrator.search.grounding.sentences import split_sentences
from orchestrator.search.prompt import NOTHING_FOUND, Passage

MODEL = Path(__file__).parents[4] / "models" / "demo"
END = 1
TOKENIZER = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
VOCABULARY = Vocabulary.load(VocabularySource(str(MODEL), TOKENIZER.get_vocab_size(), [END]))

RAFT = 'Raft elects one "leader" per term. A leader sends\theartbeats \\o/. Its log is a list.'
PASSAGES = [
    Passage("Raft", RAFT),
    Passage("Caches", 'A cache keeps copies. Raft elects one "leader" per term. Use 443'),
    Passage("東京", "東京は日本の首都です。A leader [7] is cited."),
]


def write(constraint: OutputConstraint, rng: random.Random, wanted: str = "") -> str:
    """A random completion under a constraint, or the one that spells `wanted` as far as it may."""
    matcher = VOCABULARY.matcher(constraint).raw
    ids: list[int] = []
    while not matcher.is_stopped() and len(ids) < 400:
        mask = matcher.compute_bitmask()
        allowed = [i for i in range(len(mask) * 8) if mask[i // 8] >> i % 8 & 1]
        assert allowed, matcher.get_error()
        ids.append(rng.choice(allowed))
        if ids[-1] == END:
            break
        assert matcher.consume_token(ids[-1])
    return TOKENIZER.decode(ids, skip_special_tokens=True)


def accepts(constraint: OutputConstraint, text: str) -> bool:
    """Whether a text satisfies a constraint and may end there."""
    matcher = VOCABULARY.matcher(constraint).raw
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    return matcher.validate_tokens(ids) == len(ids) and (
        matcher.consume_tokens(ids) and matcher.is_accepting()
    )


@pytest.mark.parametrize("seed", range(12))
def test_any_quoted_answer_is_sentences_of_passages(seed: int) -> None:
    """Whatever the model prefers: whole, of the cited passage, none twice, and at most three."""
    constraint = answer_constraint(Grounded.QUOTE, "leader", PASSAGES, Verdict.ANSWER)
    text = write(constraint, random.Random(seed))
    found = re.findall(r"(.+?) \[(\d)\](?: |$)", text)
    assert " ".join(f"{sentence} [{number}]" for sentence, number in found) == text
    texts = [" ".join(passage.text.split()) for passage in PASSAGES]
    assert all(sentence in texts[int(number) - 1] for sentence, number in found)
    assert len({sentence for sentence, _ in found}) == len(found)
    assert 1 <= len(found) <= MAX_SENTENCES


def test_a_sentence_of_two_passages_is_quoted_once() -> None:
    """With either number; a sentence that has a citation of its source cannot be quoted."""
    constraint = answer_constraint(Grounded.QUOTE, "leader", PASSAGES, Verdict.ANSWER)
    sentence = 'Raft elects one "leader" per term.'
    assert accepts(constraint, f"{sentence} [1]")
    assert accepts(constraint, f"{sentence} [2]")
    assert not accepts(constraint, f"{sentence} [3]")
    assert not accepts(constraint, f"{sentence} [1] {sentence} [2]")
    assert not accepts(constraint, "A leader [7] is cited. [3]")
    assert not accepts(constraint, "Raft elects one [1]")
    assert not accepts(constraint, "")


def test_sentences_about_something_else_cannot_be_quoted() -> None:
    """Only those with the query's words and the ones after them in the same passage."""
    constraint = answer_constraint(Grounded.QUOTE, "heartbeats", PASSAGES, Verdict.ANSWER)
    assert accepts(constraint, "A leader sends heartbeats \\o/. [1] Its log is a list. [1]")
    assert not accepts(constraint, "A cache keeps copies. [2]")
    meaning = answer_constraint(Grounded.QUOTE, "consensus", PASSAGES, Verdict.ANSWER)
    assert accepts(meaning, "A cache keeps copies. [2] Use 443 [2] 東京は日本の首都です。 [3]")


def test_the_verdict_decides_whether_nothing_may_be_found() -> None:
    """It must be said, may be said, or must not be said."""
    for verdict, passages, may, must in (
        (Verdict.NOTHING, PASSAGES, True, True),
        (Verdict.ANSWER, [], True, True),
        (Verdict.UNSURE, PASSAGES, True, False),
        (Verdict.ANSWER, PASSAGES, False, False),
    ):
        constraint = answer_constraint(Grounded.QUOTE, "cache", passages, verdict)
        assert accepts(constraint, NOTHING_FOUND) is may
        assert accepts(constraint, "A cache keeps copies. [2]") is not must
    constraint = answer_constraint(Grounded.CITE, "cache", [], Verdict.ANSWER)
    assert write(constraint, random.Random(0)) == NOTHING_FOUND


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("Caches keep copies. [2]", True),
        ("Caches keep 3.5 copies, e.g. of pages. [2] A leader, i.e. one node, leads! [1]", True),
        ("東京は首都です。 [3]", True),
        (NOTHING_FOUND, True),
        ("Caches keep copies.", False),
        ("Caches keep copies. [4]", False),
        ("Caches keep copies [2].", False),
        ("Caches keep copies. They expire. [2]", False),
        ("Caches keep copies.\n\n[2]", False),
        ("One is. [1] Two are. [1] Three are. [1] Four are. [1]", False),
        ("a" * 500 + ". [1]", False),
    ],
)
def test_each_sentence_of_the_models_own_ends_in_a_citation(text: str, accepted: bool) -> None:
    """Of a passage that exists; one sentence, not two, before each."""
    constraint = answer_constraint(Grounded.CITE, "cache", PASSAGES, Verdict.ANSWER)
    assert accepts(constraint, text) is accepted


def test_a_quotation_begins_with_the_mark_of_its_line() -> None:
    """A vocabulary with marks has one before each line of the prompt, and one for nothing."""
    first = TOKENIZER.token_to_id("<|s0|>")
    none = TOKENIZER.token_to_id("<|none|>")
    number = sum(len(split_sentences(passage.text)) for passage in PASSAGES)
    lines = list(range(first + 4, first + 4 + number))
    marks = line_marks([5, *lines, 5], number, TOKENIZER.token_to_id)
    assert marks == LineMarks(lines, none)
    question = line_marks([first, *lines, first], number, TOKENIZER.token_to_id)
    assert question == marks
    for ids in ([], [first] * (number + 1), [first] * (number + 4)):
        assert line_marks(ids, number, TOKENIZER.token_to_id) == LineMarks()
    constraint = answer_constraint(Grounded.QUOTE, "copies", PASSAGES, Verdict.UNSURE, marks)
    matcher = VOCABULARY.matcher(constraint).raw
    assert matcher.validate_tokens([none]) == 1
    quoted = TOKENIZER.encode("A cache keeps copies. [2]", add_special_tokens=False).ids
    assert matcher.validate_tokens(quoted) == 0
    copies = len(split_sentences(PASSAGES[0].text))
    assert matcher.validate_tokens([lines[copies], *quoted]) == 1 + len(quoted)


def test_one_sentence_is_not_followed_by_a_space() -> None:
    """After the last sentence that may be quoted the answer ends."""
    passages = [Passage("Caches", "A cache keeps copies.")]
    constraint = answer_constraint(Grounded.QUOTE, "cache", passages, Verdict.ANSWER)
    assert write(constraint, random.Random(0)) == "A cache keeps copies. [1]"


def test_a_long_result_has_a_limited_number_of_choices() -> None:
    """The parameter of the grammar has 64 bits."""
    text = " ".join(f"Caches number {number} keep copies." for number in range(100))
    constraint = answer_constraint(Grounded.QUOTE, "cache", [Passage("C", text)], Verdict.ANSWER)
    assert accepts(constraint, f"Caches number {MAX_QUOTABLE - 1} keep copies. [1]")
    assert not accepts(constraint, f"Caches number {MAX_QUOTABLE} keep copies. [1]")


DEFINITIONS = Passage(
    "Pods",
    "A pod that fails is removed. Pods share a node. A pod is a group of containers. "
    "Retrieval-augmented generation, or RAG, is a technique.",
)


@pytest.mark.parametrize(
    ("query", "first"),
    [
        ("What is a pod?", {"A pod is a group of containers. [1]"}),
        ("pods", {"A pod is a group of containers. [1]"}),
        ("what is RAG", {"Retrieval-augmented generation, or RAG, is a technique. [1]"}),
        (
            "Which node do pods share?",
            {"Pods share a node. [1]", "A pod that fails is removed. [1]",
             "A pod is a group of containers. [1]",
             "Retrieval-augmented generation, or RAG, is a technique. [1]"},
        ),
    ],
)  # fmt: skip
def test_an_answer_begins_with_the_definition_of_its_subject(query: str, first: set[str]) -> None:
    """If the question has no words but those of the subject, whatever the model prefers."""
    constraint = answer_constraint(Grounded.QUOTE, query, [DEFINITIONS], Verdict.ANSWER)
    rng = random.Random(3)
    begun = {write(constraint, rng).split(" [1]")[0] + " [1]" for _ in range(8)}
    assert begun <= first
