"""The queries of the retrieval benchmark: manual pages and their paraphrases."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from benchmarks.retrieval_sets import manual_pages as module
from benchmarks.retrieval_sets.manual_pages import manual_pages
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
