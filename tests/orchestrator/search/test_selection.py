"""Which passages are shown, and which the summary rests on."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.search.retrieval import Result
from orchestrator.search.selection import MAX_PASSAGES, for_prompt, select


def result(score: float, text: str, url: str = "") -> Result:
    """A passage; its document is its text unless `url` says another."""
    return Result("Title", url or text, score, text)


def test_the_most_relevant_is_always_there_and_first() -> None:
    """Whatever diversity wants."""
    found = [result(3, "red fox"), result(9, "blue whale"), result(5, "grey wolf")]
    assert [r.score for r in select(found, 2)] == [9, 5]


def test_near_copies_give_way_to_what_is_new() -> None:
    """A slightly worse passage with other words beats a repetition."""
    copies = [
        result(10, "The fox hunts mice in the dark forest."),
        result(9.9, "The fox hunts mice in the dark wet forest."),
        result(8, "Owls nest in hollow trees."),
    ]
    assert [r.score for r in select(copies, 2)] == [10, 8]
    assert [r.score for r in select(copies, 3)] == [10, 9.9, 8]


def test_a_document_may_have_several_passages_but_others_get_their_turn() -> None:
    """One document's passages fill the list only where nothing else comes near."""
    one = [result(10 - n / 10, f"word{n} thing{n}", "a") for n in range(5)]
    other = result(8.5, "different matter", "b")
    assert [r.document for r in select([*one, other], 3)].count("a") == 2
    assert [r.document for r in select(one, 5)] == ["a"] * 5
    assert [r.document for r in select([*one, result(1, "weak", "b")], 3)].count("a") == 3


def test_the_prompt_takes_few_and_no_weak_ones() -> None:
    """At most five, and none far below the best."""
    many = [result(10 - n / 10, f"word{n}") for n in range(9)]
    assert len(for_prompt(select(many, 9))) == MAX_PASSAGES
    assert [r.score for r in for_prompt([result(10, "a"), result(3, "b"), result(1, "c")])] == [
        10,
        3,
    ]
    assert for_prompt([]) == []


RESULTS = st.lists(
    st.builds(
        result,
        st.floats(0, 100),
        st.text("ab ", min_size=1, max_size=6),
        st.sampled_from(["", "u"]),
    ),
    max_size=20,
)


@given(found=RESULTS, num_results=st.integers(1, 20))
def test_no_more_than_asked_for_and_none_twice(found: list[Result], num_results: int) -> None:
    """Both parts of the list are best first."""
    selected = select(found, num_results)
    texts = [r.text for r in selected]
    assert len(texts) == len(set(texts)) == min(num_results, len({r.text for r in found}))
    for part in (selected[:MAX_PASSAGES], selected[MAX_PASSAGES:]):
        assert [r.score for r in part] == sorted((r.score for r in part), reverse=True)
    if found:
        assert max(r.score for r in found) >= selected[0].score
    assert list(for_prompt(selected)) == selected[: len(for_prompt(selected))]
