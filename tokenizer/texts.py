"""Encodes texts, and pairs of texts, with special tokens, as encoders read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tokenizers
from tokenizers import Encoding


class EncodedText(NamedTuple):
    """Token ids with the special tokens."""

    token_ids: list[int]
    num_first_tokens: int
    """Number of first ids whose token type is 0; the others are the second text's."""


class TextEncoder:
    """Encodes for one model. Blocking and thread-safe."""

    def __init__(self, library: tokenizers.Tokenizer) -> None:
        self._library = library

    def encode(
        self, texts: Sequence[str], second_texts: Sequence[str] = (), limit: int = 0
    ) -> list[EncodedText]:
        """Encodes texts, or pairs if there are as many second ones.

        With a `limit`, longer ones are shortened to this many tokens, special ones included: their
        end is cut off, of a pair that of the longer text.
        """
        if limit:
            encoded = self._truncated(texts, second_texts, limit)
        else:
            pairs = list(zip(texts, second_texts, strict=True)) if second_texts else list(texts)
            encoded = self._encode(pairs, add_special_tokens=True)
        return [_encoded_text(each) for each in encoded]

    def _encode(
        self, inputs: Sequence[str] | Sequence[tuple[str, str]], *, add_special_tokens: bool
    ) -> list[Encoding]:
        # The batch methods release the interpreter lock; one text is not worth their threads.
        if len(inputs) == 1:
            [each] = inputs
            first, second = (each, None) if isinstance(each, str) else each
            return [self._library.encode(first, second, add_special_tokens=add_special_tokens)]
        return self._library.encode_batch_fast(list(inputs), add_special_tokens=add_special_tokens)

    def _truncated(
        self, texts: Sequence[str], second_texts: Sequence[str], limit: int
    ) -> list[Encoding]:
        room = max(0, limit - self._library.num_special_tokens_to_add(bool(second_texts)))
        first = self._encode(texts, add_special_tokens=False)
        if not second_texts:
            for each in first:
                each.truncate(min(room, len(each)))
            return [self._library.post_process(each) for each in first]
        second = self._encode(second_texts, add_special_tokens=False)
        for one, other in zip(first, second, strict=True):
            num_one, num_other = longest_first(len(one), len(other), room)
            one.truncate(num_one)
            other.truncate(num_other)
        pairs = zip(first, second, strict=True)
        return [self._library.post_process(one, other) for one, other in pairs]


def longest_first(num_one: int, num_other: int, room: int) -> tuple[int, int]:
    """How many tokens of two texts fit into `room`, if the longer one is shortened first.

    The same numbers as by the strategy longest_first of the tokenizers library.
    """
    if num_one + num_other <= room:
        return num_one, num_other
    shorter = min(num_one, num_other)
    if 2 * shorter <= room:
        longer = room - shorter
        return (shorter, longer) if num_one <= num_other else (longer, shorter)
    half = room // 2
    return (half, room - half) if num_one <= num_other else (room - half, half)


def _encoded_text(encoding: Encoding) -> EncodedText:
    types = encoding.type_ids
    return EncodedText(encoding.ids, types.index(1) if 1 in types else len(types))
