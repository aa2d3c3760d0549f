"""The extractive rule on small cases."""

from __future__ import annotations

from models.demo.rule import choose, key_words, stem, stems


def bags(*passages: list[str]) -> list[list[frozenset[object]]]:
    """The stems of each sentence."""
    return [[frozenset(stems(sentence)) for sentence in passage] for passage in passages]


def test_key_words_leave_out_what_only_asks() -> None:
    """Stop words count only where there is nothing else."""
    assert key_words("What is the CAP theorem?") == {"cap", "theorem"}
    assert key_words("how does it work") == {stem(w) for w in ("how", "does", "it", "work")}


def test_the_best_sentence_comes_first() -> None:
    """More key words win; ties go to the earlier sentence."""
    passages = bags(["A cat sat.", "Dogs bark."], ["A cat and a dog met.", "A dog slept."])
    assert choose(key_words("cat dog"), passages)[0] == (1, 0)
    assert choose(key_words("dog"), passages)[:2] == [(0, 1), (1, 0)]


def test_a_lonely_sentence_takes_the_next_along() -> None:
    """An answer of one sentence is short; its passage goes on."""
    assert choose(key_words("cat"), bags(["A cat sat.", "It slept."])) == [(0, 0), (0, 1)]
    assert choose(key_words("slept"), bags(["A cat sat.", "It slept."])) == [(0, 1)]


def test_near_copies_are_told_once() -> None:
    """The same sentence from two sources is one sentence."""
    passages = bags(["The cat sat on a mat."], ["The cat sat on a mat."], ["A cat ran."])
    assert choose(key_words("cat"), passages) == [(0, 0), (2, 0)]


def test_nothing_fits() -> None:
    """Without a key word in any sentence there is no answer."""
    assert choose(key_words("zebra"), bags(["A cat sat."])) == []
    assert choose(key_words("zebra"), []) == []
