"""One model's tokenizer: text and conversations to ids, ids to text. Blocking and thread-safe.

All calls but those of short texts go through the library's batch forms, also for one text: only
those release the interpreter's lock, and the event loop goes on meanwhile.
"""

from __future__ import annotations

import tokenizers

from mesh.errors import invalid
from mesh.process.lifecycle import StartupError
from tokenizer.chat.budget import Budget
from tokenizer.chat.control_tokens import ControlTokens
from tokenizer.chat.conversation import Conversation
from tokenizer.chat.structural_tokens import structural_tokens
from tokenizer.chat.template import ChatTemplate
from tokenizer.config import special_tokens, template_sources
from tokenizer.files import TOKENIZER_FILE, TokenizerFiles

SHORT_CHARACTERS = 512
"""A text up to here is encoded where it is asked for, holding the interpreter's lock meanwhile.

Of a longer one the library's own threads encode, which takes some time to begin.
"""


class Tokenizer:
    """Encodes and decodes for one model."""

    def __init__(self, model: str, files: TokenizerFiles) -> None:
        """`model` is how error messages name it. Raises StartupError on bad files."""
        self.sha256 = files.sha256
        self._library = _load(model, files)
        self._ids = frozenset(self._library.get_vocab(with_added_tokens=True).values())
        self._newline_ids = self._encode(["\n"])[0]
        sources = template_sources(files.contents)
        self._template = ChatTemplate(model, sources, special_tokens(files.contents))
        added = self._library.get_added_tokens_decoder().values()
        special = [token.content for token in added if token.special]
        ordinary = [token.content for token in added if not token.special]
        self._control = ControlTokens(special, structural_tokens(sources, ordinary))
        self._quoted_ids: dict[str, list[int]] = {}

    def encode_text(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """The ids of a text as it stands; special tokens in it are special tokens."""
        return self._encode([text], add_special_tokens=add_special_tokens)[0]

    def encode_conversation(self, conversation: Conversation, budget: Budget) -> list[int]:
        """The ids of a rendered conversation; its special tokens are the template's alone.

        What looks like a special token inside the messages is encoded as ordinary text.
        Raises MeshError where the template refuses or `budget` is used up.
        """
        marked = self._control.mark(conversation)
        rendered = self._template.render(marked or conversation, budget)
        if not _is_unicode(rendered):
            raise invalid("messages", "messages and tools must not hold a lone surrogate")
        if marked is None:
            return self._encode([rendered])[0]
        return self._encode_marked(rendered)

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        """The text of `ids`. Raises MeshError on an id that is not in the vocabulary."""
        unknown = set(ids) - self._ids
        if unknown:
            raise invalid(
                "token_ids",
                f"token_ids must be in the vocabulary, 0 to {max(self._ids)}, given {min(unknown)}",
            )
        [text] = self._library.decode_batch([ids], skip_special_tokens=skip_special_tokens)
        return text

    def _encode(self, texts: list[str], *, add_special_tokens: bool = False) -> list[list[int]]:
        if len(texts) == 1 and len(texts[0]) <= SHORT_CHARACTERS:
            return [self._library.encode(texts[0], add_special_tokens=add_special_tokens).ids]
        encodings = self._library.encode_batch_fast(texts, add_special_tokens=add_special_tokens)
        return [encoding.ids for encoding in encodings]

    def _encode_marked(self, rendered: str) -> list[int]:
        """The ids of a rendered conversation with marks: forged tokens as text, the rest whole."""
        pieces = list(self._control.split(rendered))
        texts = [piece.text for piece in pieces if not piece.forged]
        encoded = iter(self._encode_middles(texts))
        first = bool(pieces) and not pieces[0].forged
        ids: list[int] = []
        for number, piece in enumerate(pieces):
            if piece.forged:
                ids += self._quote(piece.text)
            elif number == 0 and first:
                next(encoded)
                ids += self._encode([piece.text])[0]
            else:
                ids += next(encoded)
        return ids

    def _encode_middles(self, texts: list[str]) -> list[list[int]]:
        """The ids of texts that stand in the middle of a longer one.

        SentencePiece puts a space before the beginning of a text. So a newline goes before it,
        and out again; where it melts into the text, the text is encoded as if at the beginning.
        """
        length = len(self._newline_ids)
        results = []
        for text, ids in zip(texts, self._encode([f"\n{text}" for text in texts]), strict=True):
            kept = ids[:length] == self._newline_ids
            results.append(ids[length:] if kept else self._encode([text])[0])
        return results

    def _quote(self, token: str) -> list[int]:
        """The ids of a control token's own letters. Raises MeshError if they give the token."""
        if token not in self._quoted_ids:
            ids = self._ordinary(f"\n{token}")
            length = len(self._newline_ids)
            kept = ids[:length] == self._newline_ids
            self._quoted_ids[token] = ids[length:] if kept else self._ordinary(token)
        ids = self._quoted_ids[token]
        if self._library.token_to_id(token) in ids:
            raise invalid("messages", f"messages must not hold the special token {token!r}")
        return ids

    def _ordinary(self, text: str) -> list[int]:
        """Ids without any added token. The library can switch off special ones only."""
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
    except Exception as error:  # the library raises nothing narrower
        raise StartupError(f"{TOKENIZER_FILE} of model {model!r} is broken: {error}") from error
    # Some files keep the settings of a training run; a prompt is never cut or filled up.
    library.no_truncation()
    library.no_padding()
    return library


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
