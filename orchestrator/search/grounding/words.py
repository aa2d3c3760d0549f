"""Words of a text, for comparing texts by them."""

from __future__ import annotations

import re

# Scripts that put no spaces between words are compared by character.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")

STOP_WORDS = frozenset(
    (
        "a about an and are as at be by can do does explain for from give has have how i in into "
        "is it me mean means of on or please tell that the their there these this to us was what "
        "when where which who why will with work works you your"
    ).split()
)

# Not "one", which is a pronoun more often than a number.
_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        "two three four five six seven eight nine ten eleven twelve".split(), 2
    )
}

_ENDINGS = ("ings", "ing", "ies", "ied", "es", "ed", "ly", "s", "e", "y")
_MIN_STEM = 3


def words_of(text: str) -> list[str]:
    """The words of `text` as they stand there, lower case."""
    return _WORD.findall(text.lower())


def stem(word: str) -> str:
    """The word without its ending, roughly: "caches" and "caching" have the same; 2 for "two"."""
    if word in _NUMBERS:
        return _NUMBERS[word]
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= _MIN_STEM:
            return word[: -len(ending)]
    return word
