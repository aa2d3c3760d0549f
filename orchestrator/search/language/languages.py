"""Languages: detection by script and function words, stop words, and Snowball stems.

A language is its ISO 639-1 code; "" is an unknown one, whose words have no stems and no stop words.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from functools import cache, lru_cache

import regex
from snowballstemmer import stemmer
from stop_words import get_stop_words

from orchestrator.search.language.words import fold, split_words

STOP_WORDS = frozenset(
    (
        "a about an and are as at be by can do does explain for from give has have how i in into "
        "is it me mean means of on or please tell that the their there these this to us was what "
        "when where which who why will with work works you your"
    ).split()
)
"""English words that a question has but its answer need not have. The library's English list has
1,300 words, such as "affecting", by which people search."""

_LATIN = {
    "en": "english", "de": "german", "fr": "french", "es": "spanish", "pt": "portuguese",
    "it": "italian", "nl": "dutch", "sv": "swedish", "da": "danish", "nb": "norwegian",
    "fi": "finnish", "hu": "hungarian", "ro": "romanian", "tr": "turkish", "ca": "catalan",
    "id": "indonesian", "pl": "polish", "cs": "czech", "vi": "", "sk": "",
}  # fmt: skip
_CYRILLIC = {"ru": "russian", "uk": "", "bg": ""}
_ARABIC = {"ar": "arabic", "fa": "persian"}
_OTHERS = {"hi": "hindi", "el": "greek", "ta": "tamil", "hy": "armenian", "he": ""}
_SNOWBALL = _LATIN | _CYRILLIC | _ARABIC | _OTHERS
"""Languages that are recognised, and the Snowball algorithms of those that have one."""

SAMPLE_CHARACTERS = 4000
"""Characters of a text by which its language is detected."""

_SCRIPTS = {
    "latin": (regex.compile(r"\p{Latin}"), tuple(_LATIN)),
    "cyrillic": (regex.compile(r"\p{Cyrillic}"), tuple(_CYRILLIC)),
    "arabic": (regex.compile(r"\p{Arabic}"), tuple(_ARABIC)),
    "devanagari": (regex.compile(r"\p{Devanagari}"), ("hi",)),
    "greek": (regex.compile(r"\p{Greek}"), ("el",)),
    "tamil": (regex.compile(r"\p{Tamil}"), ("ta",)),
    "armenian": (regex.compile(r"\p{Armenian}"), ("hy",)),
    "hebrew": (regex.compile(r"\p{Hebrew}"), ("he",)),
    "kana": (regex.compile(r"[\p{Hiragana}\p{Katakana}]"), ("ja",)),
    "han": (regex.compile(r"\p{Han}"), ("zh",)),
    "thai": (regex.compile(r"\p{Thai}"), ("th",)),
}
_MIN_KANA_SHARE = 0.1
"""Japanese text has at least this share of kana among kana and Chinese characters."""

_MIN_FUNCTION_WORDS = 2

_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        "two three four five six seven eight nine ten eleven twelve".split(), 2
    )
}
"""Without "one", which is more often a pronoun than a number."""

_stemmers = threading.local()
"""Snowball's stemmers keep the word as their state, so each thread has its own."""


def detect_language(text: str) -> str:
    """The language of most of the beginning of `text`; "" if its script is not recognised.

    Text of a few words gets the most frequent language of its script.
    """
    sample = text[:SAMPLE_CHARACTERS]
    counts = {name: len(script.findall(sample)) for name, (script, _) in _SCRIPTS.items()}
    if counts["kana"] > _MIN_KANA_SHARE * (counts["kana"] + counts["han"]):
        counts["kana"] += counts["han"]
    script = max(counts, key=lambda name: counts[name])
    if not counts[script]:
        return ""
    languages = _SCRIPTS[script][1]
    if len(languages) == 1:
        return languages[0]
    words = split_words(sample)
    num_found = {each: sum(map(_function_words(each).__contains__, words)) for each in languages}
    best = max(languages, key=lambda each: num_found[each])
    # A text with hardly any function words, such as a title, does not show its language.
    return best if num_found[best] >= _MIN_FUNCTION_WORDS else languages[0]


@cache
def _function_words(language: str) -> frozenset[str]:
    if language == "en":
        return STOP_WORDS
    return frozenset(fold(word) for word in get_stop_words(language))


def is_stop_word(word: str, languages: Iterable[str]) -> bool:
    """Whether a folded word is a stop word of one of `languages`."""
    return any(word in _function_words(language) for language in languages if language in _SNOWBALL)


@lru_cache(maxsize=1 << 17)
def snowball(word: str, language: str) -> str:
    """The stem of a folded word; the word if Snowball has no algorithm for `language`."""
    algorithm = _SNOWBALL.get(language)
    if not algorithm:
        return word
    known: dict[str, object] | None = getattr(_stemmers, "known", None)
    if known is None:
        known = _stemmers.known = {}
    if algorithm not in known:
        known[algorithm] = stemmer(algorithm)
    stem: str = known[algorithm].stemWord(word)  # type: ignore[attr-defined]
    return fold(stem)


def stem(word: str, language: str = "en") -> str:
    """The stem of a folded word, for comparing texts; digits for English number words."""
    return _NUMBERS.get(word) or snowball(word, language)
