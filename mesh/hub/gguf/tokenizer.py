"""Converts a GGUF file's vocabulary to tokenizer.json and tokenizer_config.json.

Two kinds of vocabulary are supported, by `tokenizer.ggml.model`: "gpt2" is byte-level BPE with
merges, whose pre-tokenizer `tokenizer.ggml.pre` names; "llama" is SentencePiece's BPE, which has
scores instead of merges, and a token for each byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Any

from mesh.hub.gguf.metadata import GgufError, Metadata

SPACE = "\u2581"
"""SentencePiece's mark of a space."""


class TokenType(IntEnum):
    """The values of `tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_OTHERS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_OTHERS}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_OTHERS}"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _byte_level(*, use_regex: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _split(pattern: str) -> dict[str, Any]:
    split = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    return {"type": "Sequence", "pretokenizers": [split, _byte_level(use_regex=False)]}


_GPT2 = _byte_level(use_regex=True)
_DIGITS = {
    "type": "Sequence",
    "pretokenizers": [{"type": "Digits", "individual_digits": True}, _GPT2],
}

PRE_TOKENIZERS: Mapping[str, dict[str, Any]] = {
    **dict.fromkeys(("default", "gpt-2"), _GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), _DIGITS),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "smaug-bpe", "dbrx"), _split(_LLAMA3)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _split(_QWEN2)),
    "tekken": _split(_TEKKEN),
    "gpt-4o": _split(_O200K),
}
"""The pre-tokenizers of byte-level BPE, by `tokenizer.ggml.pre`."""

_WHOLE_WORDS = frozenset(["llama-bpe", "llama3", "llama-v3", "tekken"])
"""Those that take a word that is a token without applying merges, and begin with BOS."""


class _Vocabulary:
    """The tokens of a file with their types. Raises GgufError if they do not fit together."""

    def __init__(self, metadata: Metadata) -> None:
        values = metadata.values
        self.path = metadata.path
        self.values = values
        self.model = str(values.get("tokenizer.ggml.model", ""))
        self.pre = str(values.get("tokenizer.ggml.pre", "default"))
        self.tokens: Sequence[str] = values.get("tokenizer.ggml.tokens") or ()
        self.types: Sequence[int] = values.get("tokenizer.ggml.token_type") or (
            [TokenType.NORMAL] * len(self.tokens)
        )
        if not self.tokens:
            raise GgufError(f"{self.path}: metadata tokenizer.ggml.tokens is missing")
        if len(self.types) != len(self.tokens):
            raise GgufError(
                f"{self.path}: tokenizer.ggml.token_type must have one entry for each of the "
                f"{len(self.tokens)} tokens, has {len(self.types)}"
            )

    def special(self, name: str) -> str | None:
        """The token that `tokenizer.ggml.NAME_token_id` names; None if there is none."""
        token_id = self.values.get(f"tokenizer.ggml.{name}_token_id")
        if token_id is None or not 0 <= token_id < len(self.tokens):
            return None
        return self.tokens[int(token_id)]

    def flag(self, name: str, default: bool) -> bool:
        return bool(self.values.get(f"tokenizer.ggml.{name}", default))

    @property
    def adds_bos(self) -> bool:
        return self.flag("add_bos_token", self.model == "llama" or self.pre in _WHOLE_WORDS)

    def added_tokens(self) -> list[dict[str, Any]]:
        """Tokens that are found in the text before it is split into words."""
        kinds = {
            TokenType.CONTROL: True,
            TokenType.UNKNOWN: True,
            TokenType.USER_DEFINED: False,
        }
        return [
            {
                "id": token_id,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": kinds[TokenType(kind)],
            }
            for token_id, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True))
            if kind in kinds
        ]

    def ids(self) -> dict[str, int]:
        """The ids of all tokens but those that only pad the embedding's size."""
        return {
            token: token_id
            for token_id, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True))
            if kind != TokenType.UNUSED or not token.startswith("[PAD")
        }


def tokenizer_json(metadata: Metadata) -> dict[str, Any]:
    """The content of tokenizer.json. Raises GgufError if the vocabulary is not supported."""
    vocabulary = _Vocabulary(metadata)
    kinds = {"gpt2": _byte_level_bpe, "llama": _sentencepiece_bpe}
    if vocabulary.model not in kinds:
        raise GgufError(
            f"{metadata.path}: tokenizer {vocabulary.model!r} is not supported; "
            f"supported are {', '.join(kinds)}"
        )
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": vocabulary.added_tokens(),
        **kinds[vocabulary.model](vocabulary),
    }


def tokenizer_config(metadata: Metadata) -> dict[str, Any]:
    """The content of tokenizer_config.json: special tokens and chat templates."""
    vocabulary = _Vocabulary(metadata)
    specials = {
        f"{theirs}_token": vocabulary.special(ours)
        for theirs, ours in (
            ("bos", "bos"),
            ("eos", "eos"),
            ("unk", "unknown"),
            ("pad", "padding"),
        )
    }
    config: dict[str, Any] = {name: token for name, token in specials.items() if token is not None}
    values = metadata.values
    prefix = "tokenizer.chat_template."
    templates = {
        name.removeprefix(prefix): str(values[name]) for name in values if name.startswith(prefix)
    }
    default = values.get("tokenizer.chat_template")
    if default is not None and templates:
        listed = {"default": str(default), **templates}
        config["chat_template"] = [{"name": n, "template": t} for n, t in listed.items()]
    elif default is not None:
        config["chat_template"] = str(default)
    return config


def _byte_level_bpe(vocabulary: _Vocabulary) -> dict[str, Any]:
    pre = vocabulary.pre
    if pre not in PRE_TOKENIZERS:
        raise GgufError(
            f"{vocabulary.path}: pre-tokenizer {pre!r} (tokenizer.ggml.pre) is not supported; "
            f"supported are {', '.join(PRE_TOKENIZERS)}"
        )
    merges = vocabulary.values.get("tokenizer.ggml.merges") or ()
    return {
        "normalizer": {"type": "NFC"} if "qwen" in pre else None,
        "pre_tokenizer": PRE_TOKENIZERS[pre],
        "post_processor": _begin_with_bos(vocabulary),
        "decoder": _byte_level(use_regex=True),
        "model": {
            "type": "BPE",
            "unk_token": None,
            "ignore_merges": pre in _WHOLE_WORDS,
            "vocab": vocabulary.ids(),
            # Spaces are no part of byte-level tokens, so that the first one separates.
            "merges": [merge.split(" ", 1) for merge in merges],
        },
    }


def _sentencepiece_bpe(vocabulary: _Vocabulary) -> dict[str, Any]:
    ids = vocabulary.ids()
    scores = vocabulary.values.get("tokenizer.ggml.scores") or ()
    if len(scores) != len(vocabulary.tokens):
        raise GgufError(
            f"{vocabulary.path}: tokenizer.ggml.scores must have one entry for each of the "
            f"{len(vocabulary.tokens)} tokens, has {len(scores)}"
        )
    begins_with_space = vocabulary.flag("add_space_prefix", True)
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prefix = [{"type": "Prepend", "prepend": SPACE}] if begins_with_space else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if begins_with_space else []
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*prefix, spaces]},
        "pre_tokenizer": None,
        "post_processor": _begin_with_bos(vocabulary),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *strip,
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": vocabulary.special("unknown"),
            "fuse_unk": True,
            "byte_fallback": TokenType.BYTE in vocabulary.types,
            "vocab": ids,
            "merges": _merges(vocabulary, ids, scores),
        },
    }


def _merges(
    vocabulary: _Vocabulary, ids: Mapping[str, int], scores: Sequence[float]
) -> list[list[str]]:
    """Every pair of tokens that joins to a token, best score of the joined token first.

    SentencePiece joins the pair with the best score; transformers' converters order merges alike.
    """

    def pairs() -> Iterator[tuple[float, int, int, str, str]]:
        for token_id, token in enumerate(vocabulary.tokens):
            if vocabulary.types[token_id] not in (TokenType.NORMAL, TokenType.USER_DEFINED):
                continue
            for at in range(1, len(token)):
                left, right = token[:at], token[at:]
                if left in ids and right in ids:
                    yield -scores[token_id], ids[left], ids[right], left, right

    return [[left, right] for *_, left, right in sorted(pairs())]


def _begin_with_bos(vocabulary: _Vocabulary) -> dict[str, Any] | None:
    bos = vocabulary.special("bos")
    if bos is None or not vocabulary.adds_bos:
        return None
    token = {"SpecialToken": {"id": bos, "type_id": 0}}
    first = {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 1}}
    bos_id = vocabulary.values["tokenizer.ggml.bos_token_id"]
    return {
        "type": "TemplateProcessing",
        "single": [token, first],
        "pair": [token, first, token, second],
        "special_tokens": {bos: {"id": bos, "ids": [int(bos_id)], "tokens": [bos]}},
    }
