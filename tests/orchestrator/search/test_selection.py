"""Selection of results, and of the passages for the prompt."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.search.retrieval import SearchResult
from orchestrator.search.selection import MAX_PASSAGES, select_for_prompt, select_results


def result(score: float, text: str, url: str = "") -> SearchResult:
    """A passage; it is the only one of its document unless `url` names a shared one."""
    return SearchResult("Title", url or text, score, text)


def test_the_most_relevant_passage_comes_first() -> None:
    """Diversity never excludes it."""
    found = [result(3, "red fox"), result(9, "blue whale"), result(5, "grey wolf")]
    assert [r.score for r in select_results(found, 2)] == [9, 5]


def test_a_near_duplicate_ranks_below_a_new_passage() -> None:
    """A slightly less relevant passage with other words is preferred to a repetition."""
    copies = [
        result(10, "The fox hunts mice in the dark forest."),
        result(9.9, "The fox hunts mice in the dark wet forest."),
        result(8, "Owls nest in hollow trees."),
    ]
    assert [r.score for r in select_results(copies, 2)] == [10, 8]
    assert [r.score for r in select_results(copies, 3)] == [10, 9.9, 8]


def test_passages_of_one_document_rank_below_those_of_others() -> None:
    """One document fills the list only if other documents are much less relevant."""
    one = [result(10 - n / 10, f"word{n} thing{n}", "a") for n in range(5)]
    other = result(8.5, "different matter", "b")
    assert [r.document for r in select_results([*one, other], 3)].count("a") == 2
    assert [r.document for r in select_results(one, 5)] == ["a"] * 5
    assert [r.document for r in select_results([*one, result(1, "weak", "b")], 3)].count("a") == 3


def test_the_prompt_takes_at_most_five_relevant_passages() -> None:
    """Passages far below the best score are left out."""
    many = [result(10 - n / 10, f"word{n}") for n in range(9)]
    assert len(select_for_prompt(select_results(many, 9))) == MAX_PASSAGES
    assert [
        r.score for r in select_for_prompt([result(10, "a"), result(3, "b"), result(1, "c")])
    ] == [
        10,
        3,
    ]
    assert select_for_prompt([]) == []


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
def test_results_are_limited_distinct_and_sorted(
    found: list[SearchResult], num_results: int
) -> None:
    """Both parts of the list are sorted by descending score."""
    selected = select_results(found, num_results)
    texts = [r.text for r in selected]
    assert len(texts) == len(set(texts)) == min(num_results, len({r.text for r in found}))
    for part in (selected[:MAX_PASSAGES], selected[MAX_PASSAGES:]):
        assert [r.score for r in part] == sorted((r.score for r in part), reverse=True)
    if found:
        assert max(r.score for r in found) >= selected[0].score
    assert list(select_for_prompt(selected)) == selected[: len(select_for_prompt(selected))]
