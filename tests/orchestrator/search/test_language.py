"""Folding, words, languages and stems, and what queries of unusual characters find."""

from __future__ import annotations

import asyncio
import threading
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.index.build import main
from orchestrator.search.language.languages import detect_language, stem
from orchestrator.search.language.spelling import distance, nearest
from orchestrator.search.language.terms import index_terms, query_terms
from orchestrator.search.language.words import count_words, fold, split_words
from orchestrator.search.retrieval import SearchResult
from orchestrator.search.retrievers import index_words
from orchestrator.search.retrievers.hybrid import fuse
from orchestrator.search.retrievers.sqlite_index import IndexRetriever

DOCUMENTS = {
    "zurich": "Zürich is a city on a lake.",
    "rich": "Rich people own much.",
    "cpp": "The increment operator of C++ is ++, and a != b compares.",
    "cat": "自然言語処理は人工知能の一分野です。",
    "thai": "แมวชอบกินปลาทุกวัน",
    "emoji": "A message may contain 🦊 or 👩‍💻 and nothing else.",
    "hamlet": "To be or not to be, that is the question.",
    "currency": "The price is 5 € a day.",
}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of `DOCUMENTS`."""
    folder = tmp_path_factory.mktemp("language")
    (folder / "docs").mkdir()
    for name, text in DOCUMENTS.items():
        (folder / "docs" / f"{name}.txt").write_text(text)
    assert main([str(folder / "docs"), "--out", str(folder / "index")]) == 0
    return folder / "index"


async def found_names(index: Path, query: str) -> list[str]:
    """Names of the documents that the query finds."""
    retriever = IndexRetriever(index)
    found = await retriever.search(query, 1, False)
    await retriever.close()
    return [result.url.removesuffix(".txt") for result in found]


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("Zürich", ["zurich"]),
        (unicodedata.normalize("NFD", "Zürich"), ["zurich"]),
        ("zurich", ["zurich"]),
        ("ＺＵＲＩＣＨ", ["zurich"]),
        ("言語", ["cat"]),
        ("知", ["cat"]),
        ("ปลา", ["thai"]),
        ("🦊", ["emoji"]),
        ("💻", ["emoji"]),
        ("🐙", []),
        ("++", ["cpp"]),
        ("!=", ["cpp"]),
        ("€", ["currency"]),
        ('"', []),
        ("()[]{};", []),
        ("AND OR NOT", ["hamlet"]),
        ("what is to be", ["hamlet"]),
        ('"rich people"', ["rich"]),
        ("", []),
    ],
)
async def test_a_query_finds_what_literally_matches(
    index: Path, query: str, names: list[str]
) -> None:
    """Diacritics in any form, words within text without spaces, emoji, operators, stop words."""
    assert await found_names(index, query) == names


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ÉCOLE", "école"),
        ("Straße", "STRASSE"),
        ("Łódź", "lodz"),
        ("كِتَابٌ", "كتاب"),
        ("أحمد", "احمد"),
        ("ёлка", "елка"),
        ("ﬁne", "fine"),
        ("ﾃｽﾄ", "テスト"),
        ("ΑΘΉΝΑ", "αθηνα"),
    ],
)
def test_spellings_of_one_word_fold_to_the_same(one: str, other: str) -> None:
    """Case, width, ligatures and diacritics."""
    assert fold(one) == fold(other)


@pytest.mark.parametrize(("one", "other"), [("が", "か"), ("й", "и"), ("कि", "क"), ("กา", "ก")])
def test_marks_that_make_another_letter_are_kept(one: str, other: str) -> None:
    """Voiced kana, the Cyrillic short i, and vowel signs."""
    assert fold(one) != fold(other)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The cat is on the table and it sleeps.", "en"),
        ("Die Katze liegt auf dem Tisch und schläft.", "de"),
        ("Le chat est sur la table et il dort.", "fr"),
        ("Кошка лежит на столе, и она спит.", "ru"),
        ("猫は机の上で寝ています。", "ja"),
        ("猫在桌子上睡觉。", "zh"),
        ("แมวนอนบนโต๊ะ", "th"),
        ("बिल्ली मेज़ पर सोती है।", "hi"),
        ("نام القط على الطاولة في البيت.", "ar"),
        ("12345", ""),
    ],
)
def test_the_language_of_a_text_is_detected(text: str, language: str) -> None:
    """By script, then by function words."""
    assert detect_language(text) == language


@pytest.mark.parametrize(
    ("one", "other", "language"),
    [
        ("caches", "caching", "en"),
        ("kosten", "kostet", "de"),
        ("maisons", "maison", "fr"),
        ("кошки", "кошками", "ru"),
        ("two", "2", "en"),
    ],
)
def test_inflected_forms_have_one_stem(one: str, other: str, language: str) -> None:
    """Snowball's stems of the language."""
    assert stem(one, language) == stem(other, language)


@pytest.mark.parametrize(
    ("word", "other", "errors"),
    [
        ("quokkarium", "quokkraium", 1),
        ("quokkarium", "quokarium", 1),
        ("quokkarium", "quokkkarium", 1),
        ("quokkarium", "quokkurium", 1),
        ("quokkarium", "qukokurium", 2),
        ("quokkarium", "qukokuriums", None),
        ("same", "same", 0),
        ("quokkarium", "quxxxxxium", None),
        ("", "ab", 2),
    ],
)
def test_errors_of_spelling_are_counted(word: str, other: str, errors: int | None) -> None:
    """Letters added, missing and replaced, and neighbours exchanged; in both directions."""
    assert distance(word, other, 2) == distance(other, word, 2) == errors


@given(
    st.text("abc", max_size=8), st.text("abc", max_size=8), st.integers(min_value=1, max_value=2)
)
def test_a_limited_distance_is_the_whole_one_up_to_the_limit(
    word: str, other: str, most: int
) -> None:
    """The comparison ends early only for words that are too far from each other."""
    whole = distance(word, other, 99)
    assert whole is not None
    assert distance(word, other, most) == (whole if whole <= most else None)


def test_the_nearest_spelling_is_the_most_frequent_with_fewest_errors() -> None:
    """The first letter must be right, and short words are not corrected."""
    known = [("cached", 3), ("caches", 9), ("cathes", 1), ("bache", 99), ("cac", 1)]
    assert nearest("cachs", known) == "caches"
    assert nearest("cachet", known) == "caches"
    assert nearest("catchet", known) is None
    assert nearest("cac", known) is None
    assert nearest("c4chs", known) is None


@pytest.mark.parametrize(
    ("query", "names"),
    [("incremqnet", ["cpp"]), ("opqerator", ["cpp"]), ("incrxxxnt", []), ("ZÜRIHC", ["zurich"])],
)
async def test_a_misspelled_word_finds_the_nearest_one(
    index: Path, query: str, names: list[str]
) -> None:
    """If it is in no document itself."""
    assert await found_names(index, query) == names


@pytest.mark.parametrize(
    ("query", "corrections"),
    [
        ("the opqerator", (("opqerator", "operator"),)),
        ("the operator", ()),
        ("operator incrxxxnt", ()),
    ],
)
async def test_results_have_the_corrections_of_their_query(
    index: Path, query: str, corrections: tuple[tuple[str, str], ...]
) -> None:
    """Also fused with those of a search by vectors."""
    retriever = IndexRetriever(index)
    found = await retriever.search(query, 5, False)
    await retriever.close()
    assert {result.corrections for result in found} == {corrections}
    by_vector = [SearchResult("T", "u", 1.0, "Another text.")]
    assert {result.corrections for result in fuse(found, by_vector)} == {corrections}


async def test_a_cancelled_correction_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two words of the index: SQLite is interrupted, and the thread is free."""
    letters = "abcdefghijklmnopqrst"
    words = [f"quokka{a}{b}{c}" for a in letters for b in letters for c in letters]
    (tmp_path / "words.txt").write_text(" ".join(words))
    assert main([str(tmp_path / "words.txt"), "--out", str(tmp_path / "index")]) == 0
    num_read = 0
    begun, cancelled, ended = threading.Event(), threading.Event(), threading.Event()

    def wait(word: str, known: Iterable[tuple[str, int]]) -> str | None:
        nonlocal num_read
        try:
            for _ in known:
                num_read += 1
                begun.set()
                assert cancelled.wait(20)
        finally:
            ended.set()
        return None

    monkeypatch.setattr(index_words, "nearest", wait)
    retriever = IndexRetriever(tmp_path / "index")
    searching = asyncio.create_task(retriever.search("quokkazzz", 1, False))
    assert await asyncio.to_thread(begun.wait, 20)
    searching.cancel()
    await asyncio.gather(searching, return_exceptions=True)
    cancelled.set()
    assert await asyncio.to_thread(ended.wait, 20)
    await retriever.close()
    assert 0 < num_read < len(words) // 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("what's Raft's leader", ["what", "raft", "leader"]),
        (
            "It doesn\u2019t, and can't; won't",
            ["it", "does", "not", "and", "can", "not", "wo", "not"],
        ),
        ("l'école 'tis rock'n'roll", ["l", "ecole", "tis", "rock", "n", "roll"]),
    ],
)
def test_english_endings_after_an_apostrophe_are_no_words(text: str, words: list[str]) -> None:
    """A negation becomes "not"."""
    assert split_words(text) == words


@given(text=st.text(max_size=40))
def test_every_word_of_a_text_is_a_term_of_its_query(text: str) -> None:
    """A passage that is searched by its own text matches, and folding is idempotent."""
    language = detect_language(text)
    terms = set(index_terms(text, language))
    assert set(query_terms(text, [language])) & terms or not terms
    assert fold(fold(text)) == fold(text)
    assert all(map(str.strip, split_words(text)))
    assert count_words(text) >= 0
