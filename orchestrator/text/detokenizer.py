"""Token ids become text, piece by piece, in this process.

The concatenated pieces equal the decode of all ids at once. Tokens cannot be decoded one by one:
a character may span several. Byte-level vocabularies (GPT-2's and all that follow it) spell bytes,
so their streams are decoded as UTF-8, exactly and without looking back. Other decoders treat a
token by its neighbours; theirs are decoded in a growing window that begins anew where it is safe.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from typing import Protocol

from tokenizers import Tokenizer


class Detokenizer(Protocol):
    """The text of one stream."""

    def push(self, token_ids: Sequence[int]) -> str:
        """Takes more ids, gives the text that is certain now; may be empty."""
        ...

    def flush(self) -> str:
        """What was held back; at the end of the stream."""
        ...


class Decoder:
    """What streams of one tokenizer share. Makes a `Detokenizer` for each."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._special = frozenset(
            token_id
            for token_id, token in tokenizer.get_added_tokens_decoder().items()
            if token.special
        )
        self._pieces = _byte_pieces(tokenizer) if _is_byte_level(tokenizer) else None
        spelled = {tokenizer.token_to_id(f"<0x{byte:02X}>"): byte for byte in range(256)}
        # Special tokens are left out before decoding, so they do not end a run.
        self._run_tokens = {token_id: b"" for token_id in self._special}
        self._run_tokens |= {i: bytes([byte]) for i, byte in spelled.items() if i is not None}

    def stream(self, kept: Collection[str] = ()) -> Detokenizer:
        """A new stream; special tokens are left out of its text, but for those named in `kept`."""
        ids = {i: token for token in kept if (i := self.token_id(token)) in self._special}
        if self._pieces is None:

            def window() -> Detokenizer:
                return _WindowDetokenizer(self._tokenizer, self._run_tokens)

            return _KeepingDetokenizer(window, ids) if ids else window()
        return _ByteDetokenizer(self._pieces, self._special - ids.keys() if ids else self._special)

    def token_id(self, token: str) -> int | None:
        """The id of a text that is a token of its own."""
        token_id: int | None = self._tokenizer.token_to_id(token)
        return token_id

    def token_bytes(self, token_id: int) -> bytes:
        """One token's bytes, special tokens spelled out; empty for an unknown id."""
        if self._pieces is not None:
            return self._pieces[token_id] if token_id < len(self._pieces) else b""
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes([int(token[3:5], 16)])
        return token.replace("\u2581", " ").encode()  # SentencePiece's sign for a space

    def token_text(self, token_id: int) -> str:
        """One token alone; U+FFFD where its bytes are not whole characters."""
        return self.token_bytes(token_id).decode(errors="replace")


class _ByteDetokenizer:
    """Bytes to text. Each invalid sequence becomes U+FFFD as in the Unicode standard's practice
    of maximal subparts (section 3.9), which both Python and the tokenizers library follow.
    """

    __slots__ = ("_pieces", "_special", "_utf8")

    def __init__(self, pieces: Sequence[bytes], special: frozenset[int]) -> None:
        self._pieces = pieces
        self._special = special
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_ids: Sequence[int]) -> str:
        pieces, special = self._pieces, self._special
        known = len(pieces)
        spelled = [pieces[i] for i in token_ids if i < known and i not in special]
        return self._utf8.decode(b"".join(spelled))

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


class _WindowDetokenizer:
    """Decodes all since a safe point again with each push, and gives what is new at its end.

    A run of byte tokens at the end is held back until it is over: these decoders read a run as a
    whole, and spell each of its bytes as U+FFFD if any of it is no UTF-8. After `_MAX_HELD` bytes
    it is shown all the same, as far as its characters are whole.
    """

    def __init__(self, tokenizer: Tokenizer, run_tokens: Mapping[int, bytes]) -> None:
        """`run_tokens` are those that may be part of a run, and the bytes they spell."""
        self._tokenizer = tokenizer
        self._run_tokens = run_tokens
        self._window: list[int] = []
        self._run: list[int] = []
        self._told = ""

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
        told = self._tell()
        if len(self._window) > _WINDOW_TOKENS:
            self._begin_anew()
        return told

    def flush(self) -> str:
        self._window += self._run
        self._run.clear()
        return self._tell()

    def _num_unfinished(self, start: int) -> int:
        """Tokens at the end, from `start` on, that are the beginning of a character."""
        utf8 = codecs.getincrementaldecoder("utf-8")()
        try:
            utf8.decode(b"".join(self._run_tokens[i] for i in self._run[start:]))
        except UnicodeDecodeError:
            return 0  # nothing that may come makes it valid
        missing, end = len(utf8.getstate()[0]), len(self._run)
        while missing:
            end -= 1
            missing -= len(self._run_tokens[self._run[end]])
        return len(self._run) - end

    def _tell(self) -> str:
        text = self._tokenizer.decode(self._window, skip_special_tokens=True)
        told = text[len(self._told) :]
        self._told = text
        return told

    def _begin_anew(self) -> None:
        """Keeps the last tokens as neighbours of what comes, if alone they read the same."""
        kept = self._window[-_NEIGHBOURS:]
        text = self._tokenizer.decode(kept, skip_special_tokens=True)
        # No byte run may be cut in two, and the first token of a text may lose its space.
        if kept[0] not in self._run_tokens and text and self._told.endswith(text):
            self._window, self._told = kept, text


class _KeepingDetokenizer:
    """Spells some special tokens out; between them text is decoded as if it stood alone."""

    def __init__(self, stream: Callable[[], Detokenizer], kept: Mapping[int, str]) -> None:
        self._stream = stream
        self._kept = kept
        self._current = stream()

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


def _byte_pieces(tokenizer: Tokenizer) -> list[bytes]:
    """The bytes that each id stands for, by id."""
    byte_of_char = _byte_of_char()
    pieces = [b""] * (max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1)
    for token, token_id in tokenizer.get_vocab(with_added_tokens=True).items():
        if all(char in byte_of_char for char in token):
            pieces[token_id] = bytes(byte_of_char[char] for char in token)
        else:
            pieces[token_id] = token.encode()
    return pieces


@lru_cache(maxsize=1)
def _byte_of_char() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes, which byte-level vocabularies are written in."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    stand_ins = {chr(256 + number): byte for number, byte in enumerate(others)}
    return {chr(byte): byte for byte in printable} | stand_ins
