"""Word splitting, stop words and stemming, for lexical comparison of texts."""

from __future__ import annotations

import re

# Chinese and Japanese put no spaces between words, so each character counts as a word.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")

STOP_WORDS = frozenset(
    (
        "a about an and are as at be by can do does explain for from give has have how i in into "
        "is it me mean means of on or please tell that the their there these this to us was what "
        "when where which who why will with work works you your"
    ).split()
)

# Without "one", which is more often a pronoun than a number.
_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        "two three four five six seven eight nine ten eleven twelve".split(), 2
    )
}

_ENDINGS = ("ings", "ing", "ies", "ied", "es", "ed", "ly", "s", "e", "y")
_MIN_STEM = 3


def split_words(text: str) -> list[str]:
    """The words of `text` in their order, lower case."""
    return _WORD.findall(text.lower())


def stem(word: str) -> str:
    """An approximate stem: equal for "caches" and "caching"; digits for number words."""
    if word in _NUMBERS:
        return _NUMBERS[word]
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= _MIN_STEM:
            return word[: -len(ending)]
    return word
