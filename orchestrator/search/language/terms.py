"""The terms of the full-text index, and those that a query searches.

A spaced word becomes its stem in the document's language. In scripts without spaces the terms are
single characters and pairs of neighbours, so that a word is found wherever it occurs, without a
dictionary. A query searches a word's stems in all languages of the index, because a few words do
not show their language.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import chain, pairwise

from orchestrator.search.language.languages import is_stop_word, snowball
from orchestrator.search.language.words import characters, is_ideograph, tokens, without_endings


def index_terms(text: str, language: str) -> Iterator[str]:
    """The terms under which a text is found, in their order."""
    for token in tokens(text):
        if token.kind == "word":
            yield snowball(token.text, language)
        elif token.kind == "unspaced":
            single = characters(token.text)
            yield from single
            yield from map("".join, pairwise(single))
        else:
            yield token.text


def query_groups(query: str, languages: Collection[str]) -> list[tuple[str, ...]]:
    """What to search: for each distinct token of the query the terms that match it.

    Stop words are left out unless the query has no other words.
    """
    content: dict[tuple[str, ...], None] = {}
    others: dict[tuple[str, ...], None] = {}
    for token in tokens(without_endings(query)):
        if token.kind == "unspaced":
            single = characters(token.text)
            # Single characters too: 虹 is a word, and it need not be beside の in a text.
            content.update(((term,), None) for term in single if is_ideograph(term))
            content.update(((pair,), None) for pair in map("".join, pairwise(single)))
            if len(single) == 1:
                content[token.text,] = None
        elif token.kind == "word":
            stems = dict.fromkeys(snowball(token.text, each) for each in ("", *languages))
            is_stop = is_stop_word(token.text, ("en", *languages))
            (others if is_stop else content)[tuple(stems)] = None
        else:
            content[token.text,] = None
    return list(content or others)


def query_terms(query: str, languages: Collection[str]) -> list[str]:
    """The distinct terms of all groups of the query."""
    return list(dict.fromkeys(chain.from_iterable(query_groups(query, languages))))
