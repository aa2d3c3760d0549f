"""Search in ten languages, in scripts with and without spaces, over each kind of store."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from orchestrator.index.build import main
from orchestrator.search.retrievers.sqlite_index import IndexRetriever

PASSAGES = [
    json.loads(line)
    for line in Path(__file__).with_name("multilingual.jsonl").read_text().splitlines()
]
"""Twenty passages in each of ten languages, about the same subjects, and a query for each."""

MIN_SHARE = 0.95
"""Queries whose passage is first."""


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of all passages, each a document of its own."""
    folder = tmp_path_factory.mktemp("multilingual")
    for each in PASSAGES:
        path = folder / "docs" / f"{each['language']}-{each['number']}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(each["passage"])
    assert main([str(folder / "docs"), "--out", str(folder / "index")]) == 0
    return folder / "index"


async def test_the_right_passage_is_first_in_ten_languages(index: Path) -> None:
    """For 95 % of all queries, and for nine of ten in each language."""
    retriever = IndexRetriever(index)
    right: Counter[str] = Counter()
    wrong = []
    for each in PASSAGES:
        found = await retriever.search(each["query"], 1, False)
        if found and found[0].url == f"{each['language']}-{each['number']}.txt":
            right[each["language"]] += 1
        else:
            wrong.append(each["query"])
    await retriever.close()
    assert len(PASSAGES) == 200
    assert right.total() >= MIN_SHARE * len(PASSAGES), wrong
    assert min(right.values()) >= 18, right
