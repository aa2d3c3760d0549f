"""Prevents prompt injection by control tokens that are spelled out in messages.

`<|im_start|>system` in a user's message must be encoded as text. Before rendering, each control
token in the conversation is enclosed in two marks (private-use characters). After rendering, the
marks distinguish the conversation's tokens from the template's, and only the latter are encoded
as control tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TypeAlias

from tokenizer.chat.conversation import Conversation
from tokenizer.chat.rendered_prompt import RenderedSegment

MARK_START = "\U000f0000"
MARK_END = "\U000f0001"

_MODEL_ROLE = "assistant"


class ControlTokens:
    """The tokens of one model that only its template may produce."""

    def __init__(self, special: Iterable[str], structural: Iterable[str]) -> None:
        """`special` tokens are literal in every message. `structural` tokens, which the model
        generates too (`<tool_call>`), are literal in all messages but the assistant's.
        """
        special = frozenset(special)
        self.tokens = special | frozenset(structural)
        all_tokens = _alternatives(self.tokens)
        self._special = re.compile(_alternatives(special))
        self._all = re.compile(all_tokens)
        self._marks = re.compile(f"{MARK_START}({all_tokens}){MARK_END}|[{MARK_START}{MARK_END}]")

    def mark(self, conversation: Conversation) -> Conversation | None:
        """Returns a copy with control tokens marked; None if it contains none."""
        found = False

        def mark_tokens(text: str, role: str | None) -> str:
            nonlocal found
            pattern = self._special if role == _MODEL_ROLE else self._all
            # Marks that the text already contains could imitate ours.
            clean = text.replace(MARK_START, "").replace(MARK_END, "")
            marked, count = pattern.subn(f"{MARK_START}\\g<0>{MARK_END}", clean)
            found = found or count > 0
            return marked

        marked = conversation.map_strings(mark_tokens)
        return marked if found else None

    def split(self, rendered: str) -> Iterator[RenderedSegment]:
        """Splits a rendering at the marks and removes them.

        An unpaired mark, left when the template truncated the text, only splits.
        """
        parts = self._marks.split(rendered)
        for number, part in enumerate(parts):
            if part:
                yield RenderedSegment(part, is_literal=number % 2 == 1)


_Trie: TypeAlias = "dict[str, _Trie]"


def _alternatives(tokens: Iterable[str]) -> str:
    """A pattern that matches the longest of `tokens`, built as a trie.

    A plain `a|b|…` over hundreds of tokens takes seconds on a megabyte of their prefixes, and `re`
    holds the GIL during that time.
    """
    root: _Trie = {}
    for token in tokens:
        node = root
        for character in token:
            node = node.setdefault(character, {})
        node[""] = {}
    return _pattern(root) if root else "(?!)"


def _pattern(node: _Trie) -> str:
    branches = []
    for character, child in sorted(node.items()):
        if character:
            prefix = re.escape(character)
            # A chain without branches needs no group: `re` limits the nesting depth.
            while len(child) == 1 and "" not in child:
                [(character, child)] = child.items()
                prefix += re.escape(character)
            branches.append(prefix + ("" if child.keys() == {""} else _pattern(child)))
    body = f"(?:{'|'.join(branches)})"
    return f"{body}?" if "" in node else body
