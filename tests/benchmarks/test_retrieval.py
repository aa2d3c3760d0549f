"""The queries of the retrieval benchmark: manual pages and their paraphrases."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from benchmarks.questions import CORPUS, Outcome, Question, questions, report
from benchmarks.retrieval_sets import manual_pages as module
from benchmarks.retrieval_sets.manual_pages import manual_pages, unrendered_pages
from benchmarks.retrieval_sets.thesaurus import KINDS, Thesaurus, paraphrase

PAGE = """.TH {name} 1
.SH NAME
{name} \\- {description}
.SH DESCRIPTION
The program reads a file and prints it.
"""


@pytest.fixture
def manual(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of manual pages: two with one description, one that is too short, one good."""
    folder = tmp_path / "man1"
    folder.mkdir()
    for name, description in (
        ("one", "list the contents of folders"),
        ("two", "list the contents of folders"),
        ("three", "short name"),
        ("four", "four shows the free memory of four machines"),
    ):
        page = PAGE.format(name=name, description=description)
        (folder / f"{name}.1.gz").write_bytes(gzip.compress(page.encode()))
    monkeypatch.setattr(module, "MANUAL", tmp_path)
    return tmp_path


@pytest.mark.usefixtures("manual")
def test_a_query_has_one_answer_and_not_its_name() -> None:
    """Pages with equal or very short descriptions are left out."""
    [page] = manual_pages(10, seed=1, max_characters=1000)
    assert page.name == "four.1"
    assert page.query == "shows the free memory of machines"
    assert "The program reads a file and prints it." in page.text


@pytest.mark.usefixtures("manual")
def test_unrendered_pages_have_words_and_queries() -> None:
    """Without macros; short descriptions are left out."""
    pages = {page.name: page for page in unrendered_pages(1, 1000)}
    assert set(pages) == {"one.1", "two.1", "four.1"}
    assert pages["one.1"].query == "list the contents of folders"
    assert "The program reads a file and prints it." in pages["one.1"].text
    assert ".SH" not in pages["one.1"].text


def test_questions_name_documents_of_the_corpus() -> None:
    """Each kind but the last has answers, and both halves have all kinds."""
    asked = questions()
    known = {path.stem for path in CORPUS.glob("*.md")}
    assert all(set(each.documents) <= known for each in asked)
    assert all(bool(each.documents) == (each.kind != "none") for each in asked)
    kinds = [{each.kind for each in asked if each.held_out is half} for half in (True, False)]
    assert kinds[0] == kinds[1]
    assert len({each.question for each in asked}) == len(asked)


def test_outcomes_are_scored_by_kind() -> None:
    """The first and the five first results, the decision, and the sentences."""
    asked = Question("plain", "q", ["a"], False)
    nothing = Question("none", "n", [], True)
    figures = report(
        [
            Outcome(asked, ["a", "b"], True, "", [True, True]),
            Outcome(asked, ["b", "a"], False, "", [True, False]),
            Outcome(nothing, ["a"], True),
        ]
    )
    assert figures["plain"] == {
        "questions": 2, "right decision": 0.5, "first": 0.5, "in five": 1.0, "supported": 0.75,
    }  # fmt: skip
    assert figures["none"] == {"questions": 1, "right decision": 0.0}
    assert figures["answerable, first set"] == figures["plain"]


@pytest.fixture
def thesaurus(tmp_path: Path) -> Thesaurus:
    """Synonyms of two words, in WordNet's format."""
    for kind in KINDS:
        (tmp_path / f"index.{kind}").write_text("  1 the licence\n")
        (tmp_path / f"data.{kind}").write_text("")
    line = "00000000 06 n 02 folder 0 directory 0 000 | a place for files\n"
    (tmp_path / "data.noun").write_text(line)
    (tmp_path / "index.noun").write_text(
        "  1 the licence\nfolder n 1 0 1 0 00000000\ndirectory n 1 0 1 0 00000000\n"
    )
    return Thesaurus(tmp_path)


def test_words_are_replaced_by_synonyms_and_dropped(thesaurus: Thesaurus) -> None:
    """Inflected words too; the same seed gives the same paraphrase."""
    assert thesaurus.synonyms("folders") == ["directory"]
    query = "list old contents of folders in archives"
    changed = paraphrase(query, thesaurus, 1)
    assert changed == paraphrase(query, thesaurus, 1)
    assert len(changed.split()) == len(query.split()) - 1
    assert any("directory" in paraphrase(query, thesaurus, seed).split() for seed in range(5))
