"""The part of a text that each of its tokens adds, for log probabilities."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from mesh.protocol.deltas import DeltaLogprob
from mesh.protocol.logprobs import TokenLogprob
from mesh.text.detokenizer import Decoder, Detokenizer

Spans = Sequence[tuple[int, int]]
"""Half-open ranges of a text, in order."""


class TokenText(NamedTuple):
    """What one token adds. The texts of all tokens, joined, are the text of the stream.

    A token that ends within a character adds the rest of its text; the token that completes the
    character adds the character. `bytes` are the token's own. A token that the text omits adds
    nothing.
    """

    token_id: int
    text: str
    bytes: bytes


class TokenTexts:
    """Decodes one stream and divides its text among its tokens."""

    def __init__(self, decoder: Decoder, kept: Collection[str] = ()) -> None:
        """`kept`: special tokens that the text does not omit."""
        self._decoder = decoder
        self._kept = kept
        self._detokenizer: Detokenizer = decoder.stream(kept)
        self._open: list[int] = []
        """Tokens of which text is held back."""
        self._text = ""
        """Text of those tokens that was returned already."""

    def push(self, token_id: int) -> tuple[str, list[TokenText]]:
        """Takes the next token; returns the new text, and the tokens whose text is now known."""
        text = self._detokenizer.push([token_id])
        self._open.append(token_id)
        self._text += text
        return text, [] if self._detokenizer.holds else self._take()

    def flush(self) -> tuple[str, list[TokenText]]:
        """The text that was held back, and its tokens. Called once, at the end."""
        text = self._detokenizer.flush()
        self._text += text
        return text, self._take()

    def _take(self) -> list[TokenText]:
        token_ids, text = self._open, self._text
        self._open, self._text = [], ""
        if not token_ids:
            return []
        spelled = [
            b"" if self._decoder.omits(i, self._kept) else self._decoder.token_bytes(i)
            for i in token_ids
        ]
        return [
            TokenText(token_id, *part)
            for token_id, part in zip(token_ids, _divide(text, spelled), strict=True)
        ]


class AlignedLogprobs:
    """The log probabilities of the tokens whose text is sent.

    A token of which only a part is sent has that part; a token of which nothing is sent, as of a
    tool call, is left out.
    """

    def __init__(self, decoder: Decoder, kept: Collection[str]) -> None:
        self._decoder = decoder
        self._texts = TokenTexts(decoder, kept)
        self._logprobs: deque[TokenLogprob] = deque()
        """Of the tokens whose text is not known yet."""
        self._pending: deque[DeltaLogprob] = deque()
        """Tokens whose text is neither sent nor dropped yet."""
        self._position = 0
        """Where the first of them begins in the stream's text."""

    def push(self, logprobs: Iterable[TokenLogprob]) -> str:
        """Takes the next tokens and returns their text."""
        texts = []
        for logprob in logprobs:
            self._logprobs.append(logprob)
            text, known = self._texts.push(logprob.token_id)
            self._add(known)
            texts.append(text)
        return "".join(texts)

    def flush(self) -> str:
        """The text that was held back. Called once, at the end."""
        text, known = self._texts.flush()
        self._add(known)
        return text

    def take(self, spans: Spans, decided: int | None) -> list[DeltaLogprob]:
        """The next tokens inside `spans`, which are the parts of the text that are sent.

        `decided`: where the text begins of which this is not known yet; None: all is known.
        """
        taken: list[DeltaLogprob] = []
        while self._pending:
            begin = self._position
            end = begin + len(self._pending[0].token)
            if decided is not None and (end > decided or begin == decided):
                break
            self._position = end
            logprob = _inside(self._pending.popleft(), begin, end, spans)
            if logprob is not None:
                taken.append(logprob)
        return taken

    def _add(self, known: Iterable[TokenText]) -> None:
        for token in known:
            self._pending.append(delta_logprob(self._decoder, self._logprobs.popleft(), token))


def prompt_texts(decoder: Decoder, token_ids: Iterable[int]) -> Iterator[TokenText]:
    """What each token of a prompt adds to its text."""
    texts = TokenTexts(decoder)
    for token_id in token_ids:
        yield from texts.push(token_id)[1]
    yield from texts.flush()[1]


def delta_logprob(decoder: Decoder, logprob: TokenLogprob | None, token: TokenText) -> DeltaLogprob:
    """A token with its text, and the alternatives with the texts that they have alone."""
    if logprob is None:
        return DeltaLogprob(token.text, token.bytes, None)
    top = [
        DeltaLogprob(token.text, token.bytes, value)
        if token_id == token.token_id
        else DeltaLogprob(decoder.token_text(token_id), decoder.token_bytes(token_id), value)
        for token_id, value in logprob.top
    ]
    return DeltaLogprob(token.text, token.bytes, logprob.logprob, tuple(top))


def _divide(text: str, spelled: Sequence[bytes]) -> list[tuple[str, bytes]]:
    """The text and the bytes of each token, of tokens spelled so and with this text together."""
    joined, encoded = b"".join(spelled), text.encode()
    if joined.decode(errors="replace") != text and joined.endswith(encoded):
        # The decoder leaves out white space at the beginning of a text.
        spelled = _without_beginning(spelled, len(joined) - len(encoded))
        joined = encoded
    if joined.decode(errors="replace") != text:
        return [("", each) for each in spelled[:-1]] + [(text, spelled[-1])]
    utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
    last = len(spelled) - 1
    return [(utf8.decode(each, final=number == last), each) for number, each in enumerate(spelled)]


def _without_beginning(spelled: Iterable[bytes], length: int) -> list[bytes]:
    rest = []
    for each in spelled:
        rest.append(each[length:])
        length -= min(length, len(each))
    return rest


def _inside(logprob: DeltaLogprob, begin: int, end: int, spans: Spans) -> DeltaLogprob | None:
    if begin == end:
        return logprob if any(first <= begin <= last for first, last in spans) else None
    parts = [logprob.token[max(first - begin, 0) : max(last - begin, 0)] for first, last in spans]
    text = "".join(parts)
    if text == logprob.token:
        return logprob
    return logprob._replace(token=text, token_bytes=text.encode()) if text else None
