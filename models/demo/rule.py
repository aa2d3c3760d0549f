"""The extractive rule that selects the sentences that answer a query.

Training targets and evaluation both use it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

MAX_SENTENCES = 3

WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")

STOP_WORDS = frozenset(
    """a about above after again all also am an and any are as at be because been before being
    below between both but by can could did do does doing done down during each explain few for
    from further get give had has have having he her here hers him his how i if in into is it its
    itself just like make makes many me mean means more most much my need no nor not now of off on
    once one only or other our out over own please same she should show so some such tell than that
    the their them then there these they this those through to too under until up us use used using
    very was way we were what when where which while who whom whose why will with work works would
    you your""".split()
)

_SUFFIXES = (
    "ations", "ation", "ings", "ing", "ers", "er", "ies", "ied", "es", "ed", "ly", "s", "e", "y",
)  # fmt: skip


def stem(word: str) -> str:
    """A light stemmer: the word in lower case without its ending."""
    word = word.lower().replace("’", "'").removesuffix("'s")
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            return word[: -len(suffix)]
    return word


def stems(text: str) -> frozenset[str]:
    """The stems of all words of a text."""
    return frozenset(stem(word) for word in WORD.findall(text))


def key_words(query: str) -> frozenset[str]:
    """The stems that an answer should cover; stop words only if there are no others."""
    words = WORD.findall(query)
    content = frozenset(stem(word) for word in words if word.lower() not in STOP_WORDS)
    return content or frozenset(stem(word) for word in words)


def choose(
    keys: Iterable[object], passages: Sequence[Sequence[frozenset[object]]]
) -> list[tuple[int, int]]:
    """The best sentences as (passage, sentence), best first; empty if none has a key word.

    `passages` holds the stems of each sentence. A sentence's score is its number of key words; ties
    go to the earlier sentence. The result has at most `MAX_SENTENCES` with at least half of the
    best score, without near copies. If it has only one, its passage's next sentence is added.
    """
    wanted = frozenset(keys)
    ranked = sorted(
        (-len(wanted & words), number, place)
        for number, sentences in enumerate(passages)
        for place, words in enumerate(sentences)
    )
    if not ranked or ranked[0][0] == 0:
        return []
    threshold = (1 - ranked[0][0]) // 2
    chosen: list[tuple[int, int]] = []
    texts: list[frozenset[object]] = []
    for negative, number, place in ranked:
        if -negative < threshold or len(chosen) == MAX_SENTENCES:
            break
        words = passages[number][place]
        if not any(_near_copies(words, other) for other in texts):
            chosen.append((number, place))
            texts.append(words)
    if len(chosen) == 1:
        number, place = chosen[0]
        if place + 1 < len(passages[number]):
            chosen.append((number, place + 1))
    return chosen


def _near_copies(one: frozenset[object], other: frozenset[object]) -> bool:
    return len(one & other) > 0.8 * max(len(one), len(other), 1)
