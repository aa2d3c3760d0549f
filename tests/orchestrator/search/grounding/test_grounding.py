"""Grounding: each sentence has a supporting span, or is marked as unsupported."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.search.grounding.grounding import ground
from orchestrator.search.grounding.support import SupportFinder
from orchestrator.search.prompt import NOTHING_FOUND

PASSAGES = {
    1: "Raft is a consensus algorithm. It elects one leader per term. A leader sends heartbeats.",
    2: "Caches expire entries after 60 seconds. A cache does not store passwords.",
}


def grounded(summary: str) -> list[tuple[int | None, str, str | None]]:
    """Citation number, sentence and supporting text of each citation."""
    return [
        (
            each.number,
            summary[slice(*each.sentence)],
            None if each.span is None else PASSAGES[each.number or 0][slice(*each.span)],
        )
        for each in ground(summary, PASSAGES)
    ]


def test_a_quoted_sentence_is_supported_by_its_original() -> None:
    """The span is the quoted sentence in the cited passage."""
    summary = "It elects one leader per term. [1] Caches expire entries after 60 seconds [2]."
    assert grounded(summary) == [
        (1, "It elects one leader per term.", "It elects one leader per term."),
        (
            2,
            "Caches expire entries after 60 seconds [2].",
            "Caches expire entries after 60 seconds.",
        ),
    ]


def test_the_wrong_passage_supports_nothing() -> None:
    """A true sentence that cites another passage is unsupported."""
    assert grounded("It elects one leader per term. [2]") == [
        (2, "It elects one leader per term.", None)
    ]


def test_a_sentence_that_no_passage_supports_has_no_number() -> None:
    """Nor a span, if it cites nothing."""
    assert grounded("Raft is old. It elects one leader per term. [1]") == [
        (None, "Raft is old.", None),
        (1, "It elects one leader per term.", "It elects one leader per term."),
    ]


def test_a_sentence_without_a_citation_is_attributed() -> None:
    """To the passage that has the same sentence, or else to the first that supports it."""
    summary = "Caches expire entries after 60 seconds. A leader often sends the heartbeats."
    assert grounded(summary) == [
        (2, "Caches expire entries after 60 seconds.", "Caches expire entries after 60 seconds."),
        (1, "A leader often sends the heartbeats.", "A leader sends heartbeats."),
    ]
    assert [each.attributed for each in ground(summary + " [2]", PASSAGES)] == [True, False]


def test_quotations_end_where_their_citations_begin() -> None:
    """Lines without an end of a sentence are quoted whole; other text is grounded as usual."""
    passages = {1: "Ports to open Use 443 for TLS", 2: "Use 80 for HTTP"}
    summary = "Ports to open [1] Use 80 for HTTP [2]"
    found = ground(summary, passages, quoted=True)
    assert [(each.number, summary[slice(*each.sentence)]) for each in found] == [
        (1, "Ports to open"),
        (2, "Use 80 for HTTP"),
    ]
    assert [each.span for each in found] == [(0, 13), (0, 15)]
    for other in ("Ports to open [2]", "Ports to open [1] and more", "[1] Ports to open [1]"):
        assert ground(other, passages, quoted=True) == ground(other, passages)


def test_several_citations_are_grounded_separately() -> None:
    """In the order of the text."""
    assert grounded("A leader sends heartbeats [2][1].") == [
        (2, "A leader sends heartbeats [2][1].", None),
        (1, "A leader sends heartbeats [2][1].", "A leader sends heartbeats."),
    ]
    assert [n for n, *_ in grounded("A leader sends heartbeats [2, 1]. And more. [1]")] == [2, 1, 1]


def test_the_nothing_found_sentence_needs_no_source() -> None:
    """It makes no claim, so it has no citation entry."""
    assert ground(NOTHING_FOUND, {}) == []
    assert ground("", {}) == []


@pytest.mark.parametrize(
    ("sentence", "support"),
    [
        ("it  ELECTS one\nleader per term.", "It elects one leader per term."),
        ("Raft elects one leader per term.", PASSAGES[1][:61]),
        ("The leaders of Raft send heartbeats to elect a king of all terms.", None),
        ("Term per leader one elects.", None),
        ("It elects two leaders per term.", None),
        ("It elects 1 leader per term.", None),
        ("It elects no leader per term.", None),
        ("Entirely different words occur here.", None),
        ("It is.", None),
        ("It elects one leader per Paxos term.", None),
        ("In Paxos it elects one leader per term.", None),
        ("PAXOS elects one leader per term.", None),
    ],
)
def test_a_sentence_is_supported_by_words_in_order(sentence: str, support: str | None) -> None:
    """Inflected words count; other numbers, a negation or another word order do not."""
    span = SupportFinder(PASSAGES[1]).find(sentence)
    assert (None if span is None else PASSAGES[1][slice(*span)]) == support


def test_a_negated_sentence_is_supported_only_by_a_negated_one() -> None:
    """A negated passage does not support the positive statement."""
    assert SupportFinder(PASSAGES[2]).find("A cache will not store any passwords.") is not None
    assert SupportFinder(PASSAGES[2]).find("A cache does store passwords.") is None


def test_one_changed_word_in_a_copy_is_not_supported() -> None:
    """Seven of eight words are in the passage, but the sentence says something else."""
    passage = "The proxy retries a failed idempotent request twice before it returns an error."
    changed = "The proxy drops a failed idempotent request twice before it returns an error."
    assert SupportFinder(passage).find(changed) is None
    free = "Before it returns an error, the proxy retries a failed request."
    assert SupportFinder(passage).find(free) is not None


def test_scripts_without_spaces_are_compared_by_character() -> None:
    """Japanese text, which has no spaces between words."""
    passage = "東京は日本の首都です。人口は千四百万人です。"
    span = SupportFinder(passage).find("東京は、日本の首都です。")
    assert span is not None
    assert passage[slice(*span)].startswith("東京")
    assert SupportFinder(passage).find("大阪の城は美しい。") is None


@settings(deadline=None)
@given(text=st.text("Ab. [1]2,!\n? é日", max_size=80))
def test_spans_lie_within_their_texts(text: str) -> None:
    """For any text of the model."""
    numbers = dict.fromkeys(range(300), PASSAGES[1])
    summary = text.replace("[2", "[")
    try:
        found = ground(summary, numbers)
    except KeyError:
        return  # the citation filter would have removed this number
    for each in found:
        assert 0 <= each.sentence.begin < each.sentence.end <= len(summary)
        if each.span is not None:
            assert 0 <= each.span.begin < each.span.end <= len(PASSAGES[1])
