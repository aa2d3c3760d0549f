"""One model's tokenizer: encodes text and conversations, decodes ids. Blocking and thread-safe.

Uses the batch methods of the tokenizers library even for a single text, unless the text is short:
only the batch methods release Python's global interpreter lock (GIL), so that the event loop runs
during the work.
"""

from __future__ import annotations

from collections.abc import Sequence

import tokenizers

from mesh.errors import ErrorKind, MeshError, invalid
from mesh.process.lifecycle import StartupError
from tokenizer.chat.prompt_format import PromptFormat
from tokenizer.chat.rendered_prompt import RenderedSegment
from tokenizer.config import special_tokens, template_sources
from tokenizer.embedding_prompts import read_prompts
from tokenizer.files import TOKENIZER_FILE, TokenizerFiles
from tokenizer.texts import TextEncoder

SHORT_CHARACTERS = 512
"""Maximum length of a text that is encoded in the calling thread, with the GIL held.

Longer texts are encoded by the library's own threads, which take some time to start.
"""


class Tokenizer:
    """Encodes and decodes for one model."""

    def __init__(self, model: str, files: TokenizerFiles) -> None:
        """`model` is the name for error messages. Raises StartupError if a file is invalid."""
        self.sha256 = files.sha256
        self._library = _load(model, files)
        self._ids = frozenset(self._library.get_vocab(with_added_tokens=True).values())
        self._newline_ids = _newline_ids(model, self._library)
        added = self._library.get_added_tokens_decoder().values()
        self.format = PromptFormat(
            templates=template_sources(files.contents),
            variables=special_tokens(files.contents),
            special_tokens=[token.content for token in added if token.special],
            ordinary_tokens=[token.content for token in added if not token.special],
        )
        self.texts = TextEncoder(self._library)
        self.prompts = read_prompts(files.contents)
        self._literal_ids: dict[str, list[int]] = {}
        self._added_around: tuple[list[int], list[int]] | None = None
        self._characters_per_token = _longest_token(self._library)

    def check_fits(
        self, num_characters: int, max_tokens: int, param: str, *, slack: int = 1
    ) -> None:
        """Refuses a text that has more than `slack * max_tokens` tokens for certain.

        Cheap, while encoding megabytes takes seconds. A `max_tokens` of 0 is no limit. Raises
        MeshError (CONTEXT_TOO_LONG).
        """
        at_least = -(-num_characters // self._characters_per_token)
        if max_tokens and at_least > slack * max_tokens:
            raise MeshError(
                ErrorKind.CONTEXT_TOO_LONG,
                f"{param} must have at most {max_tokens} tokens, given {num_characters} "
                f"characters, which are at least {at_least} tokens",
                param=param,
            )

    def encode_text(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Encodes a text; special tokens that occur in it are encoded as special tokens."""
        return self._encode([text], add_special_tokens=add_special_tokens)[0]

    def encode_segments(self, segments: Sequence[RenderedSegment]) -> list[int]:
        """Encodes a rendered conversation; only its template can produce special tokens.

        A special token inside a message is encoded as ordinary text. Raises MeshError if it cannot.
        """
        if len(segments) == 1 and not segments[0].is_literal:
            return self._encode([segments[0].text])[0]
        texts = [segment.text for segment in segments if not segment.is_literal]
        encoded = iter(self._encode_continuations(texts))
        ids: list[int] = []
        for number, segment in enumerate(segments):
            if segment.is_literal:
                ids += self._encode_literally(segment.text)
                continue
            continuation = next(encoded)
            ids += self._encode([segment.text])[0] if number == 0 else continuation
        return ids

    def with_special_tokens(self, ids: list[int]) -> list[int]:
        """`ids` between the special tokens that the tokenizer adds to a text, such as BOS."""
        if self._added_around is None:
            around = self._encode(["\n"], add_special_tokens=True)[0]
            self._added_around = _around(around, self._newline_ids)
        before, after = self._added_around
        return [*before, *ids, *after]

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        """Decodes `ids`. Raises MeshError (INVALID_REQUEST) if one is not in the vocabulary."""
        if not self._ids.issuperset(ids):
            number = next(number for number, each in enumerate(ids) if each not in self._ids)
            field = f"token_ids[{number}]"
            raise invalid(
                field,
                f"{field} must be in the vocabulary, 0 to {max(self._ids)}, given {ids[number]}",
            )
        [text] = self._library.decode_batch([ids], skip_special_tokens=skip_special_tokens)
        return text

    def _encode(self, texts: list[str], *, add_special_tokens: bool = False) -> list[list[int]]:
        if len(texts) == 1 and len(texts[0]) <= SHORT_CHARACTERS:
            return [self._library.encode(texts[0], add_special_tokens=add_special_tokens).ids]
        encodings = self._library.encode_batch_fast(texts, add_special_tokens=add_special_tokens)
        return [encoding.ids for encoding in encodings]

    def _encode_continuations(self, texts: list[str]) -> list[list[int]]:
        """Encodes texts that continue another text.

        SentencePiece adds a space before the beginning of a text. To prevent it, each text is
        encoded with a leading newline, whose ids are removed. If a tokenizer merges the newline
        with the text, the text is encoded without it.
        """
        length = len(self._newline_ids)
        results = []
        for text, ids in zip(texts, self._encode([f"\n{text}" for text in texts]), strict=True):
            kept = ids[:length] == self._newline_ids
            results.append(ids[length:] if kept else self._encode([text])[0])
        return results

    def _encode_literally(self, token: str) -> list[int]:
        """Encodes a control token's spelling. Raises MeshError if the ids contain the token."""
        ids = self._literal_ids.get(token)
        if ids is None:
            number = self._library.token_to_id(token)
            ids = self._encode_inside(token)
            if number in ids:
                # SentencePiece's Unigram finds a special token in any text that spells it.
                ids = self._encode_inside(token[0]) + self._encode_inside(token[1:])
            if number in ids:
                raise invalid("messages", f"messages must not contain the special token {token!r}")
            self._literal_ids[token] = ids
        return ids

    def _encode_inside(self, text: str) -> list[int]:
        """Encodes a text that continues another one, without added tokens."""
        ids = self._encode_without_added_tokens(f"\n{text}")
        length = len(self._newline_ids)
        kept = ids[:length] == self._newline_ids
        return ids[length:] if kept else self._encode_without_added_tokens(text)

    def _encode_without_added_tokens(self, text: str) -> list[int]:
        """Encodes without any added token; the library's own option covers special ones only."""
        library = self._library
        if library.normalizer is not None:
            text = library.normalizer.normalize_str(text)
        words = [text]
        if library.pre_tokenizer is not None:
            words = [word for word, _ in library.pre_tokenizer.pre_tokenize_str(text)]
        return [token.id for word in words for token in library.model.tokenize(word)]


def _load(model: str, files: TokenizerFiles) -> tokenizers.Tokenizer:
    try:
        library = tokenizers.Tokenizer.from_buffer(files.contents[TOKENIZER_FILE])
    except Exception as error:  # the library raises plain Exception
        raise StartupError(f"{TOKENIZER_FILE} of model {model!r} is invalid: {error}") from error
    # Some files contain truncation and padding settings of a training run.
    library.no_truncation()
    library.no_padding()
    return library


def _newline_ids(model: str, library: tokenizers.Tokenizer) -> list[int]:
    """The ids of a newline: the first encoding, which fails if the parts do not fit together."""
    try:
        return library.encode("\n", add_special_tokens=False).ids
    except Exception as error:  # the library raises plain Exception
        raise StartupError(
            f"{TOKENIZER_FILE} of model {model!r} cannot encode a newline: {error}"
        ) from error


def _around(ids: list[int], inner: list[int]) -> tuple[list[int], list[int]]:
    """What precedes and follows `inner` in `ids`; nothing if `inner` is not a part of it."""
    for start in range(len(ids) - len(inner) + 1):
        if ids[start : start + len(inner)] == inner:
            return ids[:start], ids[start + len(inner) :]
    return [], []


def _longest_token(library: tokenizers.Tokenizer) -> int:
    """Maximum characters of a text that become one token."""
    longest = max(map(len, library.get_vocab(with_added_tokens=True)), default=1)
    # A normalizer may compose characters: NFC makes one of up to four.
    return longest if library.normalizer is None else 4 * longest
