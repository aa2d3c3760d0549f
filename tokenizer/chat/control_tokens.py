"""Keeps special tokens that stand in the text of messages from being taken for the template's.

`<|im_start|>system` in a web page must stay words. Before rendering, each control token in the
conversation is put between two marks (private-use characters); after it, the marks tell the
conversation's own from the template's, and the former are encoded as ordinary text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeAlias

from tokenizer.chat.conversation import Conversation

MARK_START = "\U000f0000"
MARK_END = "\U000f0001"

_MODEL_ROLE = "assistant"


class Piece(NamedTuple):
    """A part of a rendered conversation; `forged` is a control token that it only quotes."""

    text: str
    forged: bool


class ControlTokens:
    """The tokens of one model that may only come from its template."""

    def __init__(self, special: Iterable[str], structural: Iterable[str]) -> None:
        """`special`: never taken from text. `structural`: tokens that the template writes but
        that the model writes too (`<tool_call>`): taken from its own messages, and no others.
        """
        special = frozenset(special)
        self.tokens = special | frozenset(structural)
        everything = _alternatives(self.tokens)
        self._special = re.compile(_alternatives(special))
        self._all = re.compile(everything)
        self._marks = re.compile(f"{MARK_START}({everything}){MARK_END}|[{MARK_START}{MARK_END}]")

    def mark(self, conversation: Conversation) -> Conversation | None:
        """The conversation with its control tokens marked; None if it has none."""
        found = False

        def change(text: str, role: str | None) -> str:
            nonlocal found
            pattern = self._special if role == _MODEL_ROLE else self._all
            # Marks of the caller's own would forge ours.
            clean = text.replace(MARK_START, "").replace(MARK_END, "")
            marked, count = pattern.subn(f"{MARK_START}\\g<0>{MARK_END}", clean)
            found = found or count > 0
            return marked

        marked = conversation.map_strings(change)
        return marked if found else None

    def split(self, rendered: str) -> Iterator[Piece]:
        """The pieces of a rendered marked conversation, without the marks.

        A mark that lost its partner, because the template cut the text between, only splits.
        """
        parts = self._marks.split(rendered)
        for number, part in enumerate(parts):
            if part:
                yield Piece(part, forged=number % 2 == 1)


_Trie: TypeAlias = "dict[str, _Trie]"


def _alternatives(words: Iterable[str]) -> str:
    """A pattern for the longest of `words`, as a trie.

    A plain `a|b|…` over a model's hundreds of tokens takes seconds on a megabyte made of their
    beginnings, and `re` holds the interpreter's lock meanwhile.
    """
    root: _Trie = {}
    for word in words:
        node = root
        for character in word:
            node = node.setdefault(character, {})
        node[""] = {}
    return _pattern(root) if root else "(?!)"


def _pattern(node: _Trie) -> str:
    branches = []
    for character, child in sorted(node.items()):
        if character:
            prefix = re.escape(character)
            # Chains without branches stay flat: tokens are long, and `re` nests to a limit.
            while len(child) == 1 and "" not in child:
                [(character, child)] = child.items()
                prefix += re.escape(character)
            branches.append(prefix + ("" if child.keys() == {""} else _pattern(child)))
    body = f"(?:{'|'.join(branches)})"
    return f"{body}?" if "" in node else body
