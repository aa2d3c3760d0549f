"""The extractive rule that labels the training data, on small cases."""

from __future__ import annotations

from models.demo.rule import choose, key_words, stem, stems


def bags(*passages: list[str]) -> list[list[frozenset[object]]]:
    """The stems of each sentence."""
    return [[frozenset(stems(sentence)) for sentence in passage] for passage in passages]


def test_key_words_exclude_stop_words() -> None:
    """Stop words are key words only if there are no others."""
    assert key_words("What is the CAP theorem?") == {"cap", "theorem"}
    assert key_words("how does it work") == {stem(w) for w in ("how", "does", "it", "work")}


def test_the_best_sentence_comes_first() -> None:
    """The sentence with most key words; on a tie the earlier one."""
    passages = bags(["A cat sat.", "Dogs bark."], ["A cat and a dog met.", "A dog slept."])
    assert choose(key_words("cat dog"), passages)[0] == (1, 0)
    assert choose(key_words("dog"), passages)[:2] == [(0, 1), (1, 0)]


def test_a_single_sentence_is_extended_by_the_next_one() -> None:
    """An answer of one sentence also contains the next sentence of its passage."""
    assert choose(key_words("cat"), bags(["A cat sat.", "It slept."])) == [(0, 0), (0, 1)]
    assert choose(key_words("slept"), bags(["A cat sat.", "It slept."])) == [(0, 1)]


def test_duplicate_sentences_are_chosen_once() -> None:
    """A sentence that two passages contain is chosen once."""
    passages = bags(["The cat sat on a mat."], ["The cat sat on a mat."], ["A cat ran."])
    assert choose(key_words("cat"), passages) == [(0, 0), (2, 0)]


def test_no_sentence_has_a_key_word() -> None:
    """Then the answer is empty."""
    assert choose(key_words("zebra"), bags(["A cat sat."])) == []
    assert choose(key_words("zebra"), []) == []
