"""Incremental detokenization of token streams, in this process.

The concatenated texts equal the decoding of all ids at once. Tokens cannot be decoded one by one,
because a character may span several. The tokens of byte-level vocabularies (GPT-2 and later) are
bytes, so their streams are decoded incrementally as UTF-8. Other decoders depend on neighbouring
tokens; their streams are decoded in a growing window, which restarts where this is safe.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from typing import Protocol

from tokenizers import Tokenizer


class Detokenizer(Protocol):
    """Turns one stream of token ids into text."""

    @property
    def holds(self) -> bool:
        """Whether text is held back."""
        ...

    def push(self, token_ids: Sequence[int]) -> str:
        """Takes more ids and returns the text that is certain now, which may be empty."""
        ...

    def flush(self) -> str:
        """Returns what was held back. Called once, at the end of the stream."""
        ...


class Decoder:
    """Tables of one tokenizer, shared by all its streams. Creates a `Detokenizer` per stream."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._special = frozenset(
            token_id
            for token_id, token in tokenizer.get_added_tokens_decoder().items()
            if token.special
        )
        self._token_bytes = _bytes_of_tokens(tokenizer) if _is_byte_level(tokenizer) else None
        spelled = {tokenizer.token_to_id(f"<0x{byte:02X}>"): byte for byte in range(256)}
        # Special tokens are skipped before decoding, so they do not end a run of byte tokens.
        self._run_tokens = {token_id: b"" for token_id in self._special}
        self._run_tokens |= {i: bytes([byte]) for i, byte in spelled.items() if i is not None}

    def stream(self, kept: Collection[str] = ()) -> Detokenizer:
        """A new stream. Its text omits special tokens, except those in `kept`."""
        ids = {i: token for token in kept if (i := self.token_id(token)) in self._special}
        if self._token_bytes is None:

            def window() -> Detokenizer:
                return _WindowDetokenizer(self._tokenizer, self._run_tokens)

            return _KeepingDetokenizer(window, ids) if ids else window()
        return _ByteDetokenizer(
            self._token_bytes, frozenset(self._special - ids.keys()) if ids else self._special
        )

    def token_id(self, token: str) -> int | None:
        """The id of a token, by its text; None if there is no such token."""
        token_id: int | None = self._tokenizer.token_to_id(token)
        return token_id

    def omits(self, token_id: int, kept: Collection[str] = ()) -> bool:
        """Whether texts omit this token, unless it is in `kept`."""
        return token_id in self._special and self._tokenizer.id_to_token(token_id) not in kept

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token, also of special tokens; empty for an unknown id."""
        if self._token_bytes is not None:
            return self._token_bytes[token_id] if token_id < len(self._token_bytes) else b""
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes([int(token[3:5], 16)])
        return token.replace("\u2581", " ").encode()  # SentencePiece spells a space as U+2581

    def token_text(self, token_id: int) -> str:
        """The text of one token; U+FFFD for bytes that are not whole characters."""
        return self.token_bytes(token_id).decode(errors="replace")


class _ByteDetokenizer:
    """Decodes bytes as UTF-8. Each invalid sequence becomes U+FFFD by the Unicode standard's
    practice of maximal subparts (section 3.9), as in Python and in the tokenizers library.
    """

    __slots__ = ("_special", "_token_bytes", "_utf8")

    def __init__(self, token_bytes: Sequence[bytes], special: frozenset[int]) -> None:
        self._token_bytes = token_bytes
        self._special = special
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    @property
    def holds(self) -> bool:
        return bool(self._utf8.getstate()[0])

    def push(self, token_ids: Sequence[int]) -> str:
        token_bytes, special = self._token_bytes, self._special
        known = len(token_bytes)
        spelled = [token_bytes[i] for i in token_ids if i < known and i not in special]
        return self._utf8.decode(b"".join(spelled))

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


class _WindowDetokenizer:
    """Each push decodes all tokens since a safe point and returns the new text at the end.

    A run of byte tokens at the end is held back until it is complete: these decoders decode a run
    as a whole, and return U+FFFD for each of its bytes if the run is not valid UTF-8. Beyond
    `_MAX_HELD` tokens its whole characters are returned anyway.
    """

    def __init__(self, tokenizer: Tokenizer, run_tokens: Mapping[int, bytes]) -> None:
        """`run_tokens`: the tokens that may be part of a run, with their bytes."""
        self._tokenizer = tokenizer
        self._run_tokens = run_tokens
        self._window: list[int] = []
        self._run: list[int] = []
        self._text = ""

    @property
    def holds(self) -> bool:
        return bool(self._run)

    def push(self, token_ids: Sequence[int]) -> str:
        self._run.extend(token_ids)
        length = len(self._run)
        while length and self._run[length - 1] in self._run_tokens:
            length -= 1
        if len(self._run) - length > _MAX_HELD:
            length = len(self._run) - self._num_unfinished(length)
        if not length:
            return ""
        self._window += self._run[:length]
        del self._run[:length]
        text = self._new_text()
        if len(self._window) > _WINDOW_TOKENS:
            self._restart_window()
        return text

    def flush(self) -> str:
        self._window += self._run
        self._run.clear()
        return self._new_text()

    def _num_unfinished(self, start: int) -> int:
        """Number of tokens at the end of the run that are an incomplete character."""
        utf8 = codecs.getincrementaldecoder("utf-8")()
        try:
            utf8.decode(b"".join(self._run_tokens[i] for i in self._run[start:]))
        except UnicodeDecodeError:
            return 0  # no further token can make it valid
        missing, end = len(utf8.getstate()[0]), len(self._run)
        while missing:
            end -= 1
            missing -= len(self._run_tokens[self._run[end]])
        return len(self._run) - end

    def _new_text(self) -> str:
        text = self._tokenizer.decode(self._window, skip_special_tokens=True)
        new = text[len(self._text) :]
        self._text = text
        return new

    def _restart_window(self) -> None:
        """Keeps only the last tokens, if they decode to the same text without those before."""
        begin = len(self._window) - _NEIGHBOURS
        while not self._may_begin(begin):
            begin += 1
            if begin == len(self._window):
                return
        kept = self._window[begin:]
        text = self._tokenizer.decode(kept, skip_special_tokens=True)
        # The first token of a text may lose its leading space.
        if text and self._text.endswith(text):
            self._window, self._text = kept, text

    def _may_begin(self, index: int) -> bool:
        """Whether a window may begin at this token. Only a run whose beginning has been returned
        may be split, or the window would grow with the text; and then between characters.
        """
        spelled = self._run_tokens.get(self._window[index])
        if spelled is None:
            return True
        if spelled and spelled[0] & 0xC0 == 0x80:  # a continuation byte
            return False
        return all(token in self._run_tokens for token in self._window[-_MAX_HELD:])


class _KeepingDetokenizer:
    """Keeps some special tokens in the text; decodes the parts between them separately."""

    def __init__(self, stream: Callable[[], Detokenizer], kept: Mapping[int, str]) -> None:
        self._stream = stream
        self._kept = kept
        self._current = stream()

    @property
    def holds(self) -> bool:
        return self._current.holds

    def push(self, token_ids: Sequence[int]) -> str:
        pieces: list[str] = []
        begin = 0
        for number, token_id in enumerate(token_ids):
            if token_id in self._kept:
                pieces.append(self._current.push(token_ids[begin:number]))
                pieces.append(self._current.flush() + self._kept[token_id])
                self._current = self._stream()
                begin = number + 1
        pieces.append(self._current.push(token_ids[begin:]))
        return "".join(pieces)

    def flush(self) -> str:
        return self._current.flush()


_MAX_HELD = 64
_WINDOW_TOKENS = 64
_NEIGHBOURS = 8


def _is_byte_level(tokenizer: Tokenizer) -> bool:
    decoder = json.loads(tokenizer.to_str())["decoder"] or {}
    steps = decoder.get("decoders", [decoder])
    return [step.get("type") for step in steps] == ["ByteLevel"]


def _bytes_of_tokens(tokenizer: Tokenizer) -> list[bytes]:
    """The bytes of each token, indexed by id."""
    byte_of_char = _byte_of_char()
    token_bytes = [b""] * (
        max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    )
    for token, token_id in tokenizer.get_vocab(with_added_tokens=True).items():
        if all(char in byte_of_char for char in token):
            token_bytes[token_id] = bytes(byte_of_char[char] for char in token)
        else:
            token_bytes[token_id] = token.encode()
    return token_bytes


@lru_cache(maxsize=1)
def _byte_of_char() -> dict[str, int]:
    """The printable characters that byte-level vocabularies use for bytes, as in GPT-2."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    stand_ins = {chr(256 + number): byte for number, byte in enumerate(others)}
    return {chr(byte): byte for byte in printable} | stand_ins
