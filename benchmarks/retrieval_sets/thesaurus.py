"""Paraphrases of queries with WordNet, whose files are in Debian's package `wordnet-base`."""

from __future__ import annotations

import random
import re
from pathlib import Path

from orchestrator.search.language.languages import STOP_WORDS

DROPPED_SHARE, SWAPPED_SHARE = 0.2, 0.5
"""Shares of a query's content words that are dropped, and replaced by a synonym if there is one."""

KINDS = ("noun", "verb", "adj", "adv")
_WORD = re.compile(r"[A-Za-z][A-Za-z'-]*")
_ENDINGS = (("ies", "y"), ("es", ""), ("s", ""), ("ing", ""), ("ing", "e"), ("ed", ""), ("ed", "e"))


class Thesaurus:
    """Synonyms: the other words of a word's most frequent sense."""

    def __init__(self, folder: Path) -> None:
        """`folder` has WordNet's `index.noun`, `data.noun` and so on."""
        self._data = {kind: (folder / f"data.{kind}").read_bytes() for kind in KINDS}
        self._senses = {kind: dict(_senses(folder / f"index.{kind}")) for kind in KINDS}

    def synonyms(self, word: str) -> list[str]:
        """Other words with the meaning of `word`; of the first kind of word that has some."""
        for lemma in _lemmas(word.lower()):
            for kind in KINDS:
                for offset in self._senses[kind].get(lemma, ())[:2]:
                    words = [each for each in self._words(kind, offset) if each != lemma]
                    if words:
                        return words
        return []

    def _words(self, kind: str, offset: int) -> list[str]:
        """The words of one sense; wndb(5WN) describes the file."""
        end = self._data[kind].index(b"\n", offset)
        fields = self._data[kind][offset:end].decode().split(" ")
        number = int(fields[3], 16)
        words = (fields[4 + 2 * place].partition("(")[0] for place in range(number))
        return [word.replace("_", " ").lower() for word in words]


def paraphrase(query: str, thesaurus: Thesaurus, seed: int) -> str:
    """`query` with some content words dropped and others replaced by synonyms."""
    choose = random.Random(f"{seed} {query}")
    words = query.split()
    content = [
        place
        for place, word in enumerate(words)
        if _WORD.fullmatch(word.strip(".,;:()")) and word.lower() not in STOP_WORDS
    ]
    choose.shuffle(content)
    num_dropped = int(DROPPED_SHARE * len(content))
    num_swapped = round(SWAPPED_SHARE * len(content))
    dropped = set(content[:num_dropped])
    for place in content[num_dropped:]:
        if num_swapped and (synonyms := thesaurus.synonyms(words[place].strip(".,;:()"))):
            words[place] = choose.choice(synonyms)
            num_swapped -= 1
    return " ".join(word for place, word in enumerate(words) if place not in dropped)


def _senses(path: Path) -> list[tuple[str, tuple[int, ...]]]:
    senses = []
    for line in path.read_text().splitlines():
        if line.startswith(" "):
            continue  # the licence
        fields = line.split()
        number = int(fields[2])
        senses.append((fields[0].replace("_", " "), tuple(map(int, fields[-number:]))))
    return senses


def _lemmas(word: str) -> list[str]:
    bases = [word[: -len(end)] + base for end, base in _ENDINGS if word.endswith(end)]
    return [word, *(base for base in bases if len(base) > 2)]
