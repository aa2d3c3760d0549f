"""Folds text and splits it into words, in all scripts.

Folding makes equal what readers regard as equal spellings: case, width, and diacritics of Latin,
Greek, Arabic and Hebrew letters. Marks that are vowels (Devanagari, Thai) or that make another
letter (Cyrillic short i, Japanese voicing) are kept.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

import regex

_DIACRITICS = regex.compile(
    r"(?<=[\p{Latin}\p{Greek}][\u0300-\u036f]*)[\u0300-\u036f]"  # Zürich, café, Αθήνα
    r"|(?<=\p{Cyrillic})[\u0300\u0301\u0308]"  # stress, and io as ie; not short i
    r"|[\u064b-\u065f\u0670\u06d6-\u06ed\u0640]"  # Arabic vowels, hamza, Koranic marks, tatweel
    r"|[\u0591-\u05bd\u05bf-\u05c7]"  # Hebrew points
    r"|[\u200c\u200d\ufe0e\ufe0f\u00ad]"  # joiners, variation selectors, soft hyphen
)
_LETTERS = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "ħ": "h", "\u0131": "i", "æ": "ae", "œ": "oe"}
)
"""Latin letters with strokes and ligatures, which have no decomposition."""

UNSPACED = (
    r"\p{Han}\p{Hiragana}\p{Katakana}ー々〆\p{Hangul}"
    r"\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
)
"""Scripts that put no spaces between words, as part of a set of characters; and Hangul, whose
spaces separate phrases: a noun is written together with its particles."""

# Numbers keep their decimal separators, and words their apostrophes are separators.
_TOKEN = regex.compile(
    rf"(?P<unspaced>[{UNSPACED}][{UNSPACED}\p{{M}}]*)"
    rf"|(?P<word>[[\p{{L}}\p{{M}}\p{{N}}_]--[{UNSPACED}]]+)"
    r"|(?P<emoji>\p{Extended_Pictographic}|\p{Regional_Indicator}{2})"
    # Runs of operators, such as ++ and !=; of single signs only those that prose does not use.
    r"|(?P<sign>[-+*/=<>!&|^~%#@$\\?:]{2,}|[+=<>#@$%&^~|]|[\p{Sc}\p{Sm}])",
    regex.VERSION1,
)
_ENDING = regex.compile(r"(?i)(?<=\p{L})['\u2019](?:s|d|m|ll|re|ve)\b")
_NEGATION = regex.compile(r"(?i)(?:(?<=\bcan)|(?<=\p{L})(?<!\bca)n)['\u2019]t\b")
"""English endings after an apostrophe, which are no words: "what's", "Raft's", "doesn't"."""

_IDEOGRAPH = regex.compile(r"\p{Han}")
_CLUSTER = regex.compile(r"\X")


class Token(NamedTuple):
    """A piece of folded text: a word, or a run of characters without spaces between its words."""

    text: str
    kind: str
    """`word`, `unspaced`, `emoji` or `sign`."""


def fold(text: str) -> str:
    """`text` in a form that is equal for spellings that differ in case, width or diacritics."""
    if text.isascii():
        return text.lower()
    decomposed = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", text).casefold())
    return unicodedata.normalize("NFC", _DIACRITICS.sub("", decomposed)).translate(_LETTERS)


def without_endings(text: str) -> str:
    """`text` without the English endings of "what's" and "Raft's"."""
    stripped: str = _ENDING.sub("", text)
    return stripped


def tokens(text: str) -> Iterator[Token]:
    """The tokens of the folded `text`, in their order."""
    for found in _TOKEN.finditer(fold(text)):
        yield Token(found[0], found.lastgroup or "")


def characters(run: str) -> list[str]:
    """The characters of a run as readers count them: a letter with its vowel signs is one."""
    clusters: list[str] = _CLUSTER.findall(run)
    return clusters


def is_ideograph(character: str) -> bool:
    """Whether a character is Chinese, and so often a word by itself."""
    return _IDEOGRAPH.fullmatch(character) is not None


def split_words(text: str) -> list[str]:
    """The words of `text` in their order, folded.

    In scripts without spaces each character counts as a word. Signs and emoji are left out. English
    endings after an apostrophe are left out, too, and "n't" becomes "not".
    """
    words: list[str] = []
    for token in tokens(_NEGATION.sub(" not", without_endings(text))):
        if token.kind == "word":
            words.append(token.text)
        elif token.kind == "unspaced":
            words += characters(token.text)
    return words


def count_words(text: str) -> int:
    """Approximate number of words; a word of a script without spaces has two characters."""
    pieces = list(tokens(text))
    unspaced = sum(len(characters(each.text)) for each in pieces if each.kind == "unspaced")
    return sum(each.kind == "word" for each in pieces) + (unspaced + 1) // 2
