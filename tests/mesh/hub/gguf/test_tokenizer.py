"""Tokenizers of GGUF files, against the libraries that made their vocabularies."""

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import sentencepiece
import transformers
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers

from mesh.hub.gguf.metadata import GgufError, Metadata
from mesh.hub.gguf.tokenizer import PRE_TOKENIZERS, TokenType, tokenizer_config, tokenizer_json

CORPUS = sorted((Path(__file__).parents[4] / "examples" / "corpus").glob("*.md"))
CONTROL = "<|im_end|>"
SPACES = " \t\n\r\u00a0\u2003"
NUM_STRINGS = 5000


def odd_strings() -> Iterator[str]:
    """Texts of all scripts, digits, spaces, emoji, marks, and pieces of control tokens."""
    rng = random.Random(0)
    words = [word for path in CORPUS[:3] for word in path.read_text().split()]
    ranges = [(0x20, 0x7F), (0xA0, 0x250), (0x370, 0x530), (0x5D0, 0x6FF), (0x900, 0x980)]
    ranges += [(0x3040, 0x30FF), (0x4E00, 0x4F00), (0xAC00, 0xAD00), (0x1F300, 0x1F650)]
    for _ in range(NUM_STRINGS):
        parts = []
        for _ in range(rng.randrange(1, 9)):
            kind = rng.randrange(7)
            if kind == 0:
                parts.append(rng.choice(words))
            elif kind == 1:
                parts.append("".join(rng.choices(SPACES, k=rng.randrange(1, 5))))
            elif kind == 2:
                parts.append(str(rng.randrange(10 ** rng.randrange(1, 9))))
            elif kind == 3:
                parts.append(
                    rng.choice([CONTROL, "<|im_", "'s", "'LL", "don't", "e\u0301", "\u200d"])
                )
            else:
                low, high = rng.choice(ranges)
                codes = [rng.randrange(low, high) for _ in range(rng.randrange(1, 6))]
                parts.append("".join(c for c in map(chr, codes) if unicodedata.name(c, "")))
        yield "".join(parts)


def metadata(values: dict[str, Any]) -> Metadata:
    """The metadata of a file with these values."""
    named = {f"tokenizer.{name}": value for name, value in values.items()}
    return cast(Metadata, SimpleNamespace(path=Path("model.gguf"), values=named))


def converted(values: dict[str, Any]) -> Tokenizer:
    """The tokenizer of a file with these values."""
    return Tokenizer.from_str(json.dumps(tokenizer_json(metadata(values))))


@pytest.fixture(scope="module")
def byte_level() -> tuple[list[str], list[str]]:
    """Tokens in the order of their ids, and merges, of a small byte-level BPE."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [path.read_text() for path in CORPUS],
        trainers.BpeTrainer(vocab_size=2000, initial_alphabet=alphabet, show_progress=False),
    )
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return tokens, [" ".join(merge) for merge in model["merges"]]


def byte_level_values(
    byte_level: tuple[list[str], list[str]], pre: str, **more: Any
) -> dict[str, Any]:
    """The metadata of that vocabulary, with one control token at its end."""
    tokens, merges = byte_level
    return {
        "ggml.model": "gpt2",
        "ggml.pre": pre,
        "ggml.tokens": [*tokens, CONTROL],
        "ggml.token_type": [*[int(TokenType.NORMAL)] * len(tokens), int(TokenType.CONTROL)],
        "ggml.merges": merges,
        **more,
    }


def of_transformers(make: type[Any], byte_level: tuple[list[str], list[str]]) -> Tokenizer:
    """The tokenizer that a class of transformers makes of the same vocabulary."""
    tokens, merges = byte_level
    vocabulary = {token: token_id for token_id, token in enumerate([*tokens, CONTROL])}
    pairs = [tuple(merge.split(" ")) for merge in merges]
    special = dict.fromkeys(("unk_token", "bos_token", "eos_token", "pad_token"), CONTROL)
    return make(vocab=vocabulary, merges=pairs, **special).backend_tokenizer


def smollm2(byte_level: tuple[list[str], list[str]]) -> Tokenizer:
    """As SmolLM2's tokenizer.json has it: each digit is a word, then GPT-2's words."""
    tokens, merges = byte_level
    vocabulary = {token: token_id for token_id, token in enumerate([*tokens, CONTROL])}
    pairs = [cast(tuple[str, str], tuple(merge.split(" "))) for merge in merges]
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.add_special_tokens([AddedToken(CONTROL, special=True, normalized=False)])
    return tokenizer


@pytest.mark.parametrize(
    ("pre", "reference"),
    [
        ("gpt-2", lambda vocabulary: of_transformers(transformers.GPT2Tokenizer, vocabulary)),
        ("qwen2", lambda vocabulary: of_transformers(transformers.Qwen2Tokenizer, vocabulary)),
        ("smollm", smollm2),
    ],
)
def test_byte_level_vocabularies_encode_as_in_transformers(
    pre: str,
    reference: Callable[[tuple[list[str], list[str]]], Tokenizer],
    byte_level: tuple[list[str], list[str]],
) -> None:
    """The ids of 5,000 odd strings, and their text again."""
    expected = reference(byte_level)
    found = converted(byte_level_values(byte_level, pre))
    texts = list(odd_strings())
    encoded = found.encode_batch(texts, add_special_tokens=False)
    for text, ours, theirs in zip(
        texts, encoded, expected.encode_batch(texts, add_special_tokens=False), strict=True
    ):
        assert ours.ids == theirs.ids, text
        normal = unicodedata.normalize("NFC", text) if pre == "qwen2" else text
        assert found.decode(ours.ids, skip_special_tokens=False) == normal


@pytest.mark.parametrize(
    ("pre", "text", "words"),
    [
        (
            "llama-bpe",
            "It's 12345 I'LL\n\n x",
            ["It", "'s", " ", "123", "45", " I", "'LL", "\n\n", " x"],
        ),
        ("qwen2", "It's 123 x", ["It", "'s", " ", "1", "2", "3", " x"]),
        ("smollm", "at 123 x", ["at", " ", "1", "2", "3", " x"]),
        ("gpt-2", "at 123 x", ["at", " 123", " x"]),
        ("tekken", "myWord ABc 12", ["my", "Word", " ABc", " ", "1", "2"]),
    ],
)
def test_words_of_each_pre_tokenizer(pre: str, text: str, words: list[str]) -> None:
    """Where llama.cpp's patterns of the same names split a text."""
    tokenizer = Tokenizer.from_str(
        json.dumps(
            {
                "version": "1.0",
                "added_tokens": [],
                "pre_tokenizer": PRE_TOKENIZERS[pre],
                "model": {"type": "BPE", "vocab": {}, "merges": []},
            }
        )
    )
    assert tokenizer.pre_tokenizer is not None
    spans = [span for _, span in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    assert [text[begin:end] for begin, end in spans] == words


@pytest.fixture(scope="module")
def sentencepiece_model(
    tmp_path_factory: pytest.TempPathFactory,
) -> sentencepiece.SentencePieceProcessor:
    """A small BPE model of SentencePiece with a token for each byte."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    text = folder / "text.txt"
    text.write_text("\n".join(path.read_text() for path in CORPUS))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "m"),
        model_type="bpe",
        vocab_size=1500,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "m.model"))


def sentencepiece_values(model: sentencepiece.SentencePieceProcessor) -> dict[str, Any]:
    """The metadata of that model."""

    def kind(token_id: int) -> TokenType:
        if model.is_unknown(token_id):
            return TokenType.UNKNOWN
        if model.is_control(token_id):
            return TokenType.CONTROL
        return TokenType.BYTE if model.is_byte(token_id) else TokenType.NORMAL

    ids: Sequence[int] = range(model.get_piece_size())
    return {
        "ggml.model": "llama",
        "ggml.tokens": [model.id_to_piece(token_id) for token_id in ids],
        "ggml.scores": [model.get_score(token_id) for token_id in ids],
        "ggml.token_type": [int(kind(token_id)) for token_id in ids],
        "ggml.bos_token_id": model.bos_id(),
        "ggml.eos_token_id": model.eos_id(),
        "ggml.unknown_token_id": model.unk_id(),
    }


def test_sentencepiece_vocabularies_encode_as_in_sentencepiece(
    sentencepiece_model: sentencepiece.SentencePieceProcessor,
) -> None:
    """The ids of 5,000 odd strings, and their text again; characters it lacks become bytes."""
    found = converted(sentencepiece_values(sentencepiece_model))
    texts = list(odd_strings())
    encoded = found.encode_batch(texts, add_special_tokens=False)
    for text, ours, theirs in zip(texts, encoded, sentencepiece_model.encode(texts), strict=True):
        assert ours.ids == theirs, text
        assert found.decode(ours.ids) == text


def test_a_beginning_token_is_added_where_the_model_needs_it(
    byte_level: tuple[list[str], list[str]],
    sentencepiece_model: sentencepiece.SentencePieceProcessor,
) -> None:
    """SentencePiece's and Llama 3's do by default; the file's own key decides."""
    values = sentencepiece_values(sentencepiece_model)
    assert converted(values).encode("a").tokens[0] == "<s>"
    assert converted({**values, "ggml.add_bos_token": False}).encode("a").tokens[0] != "<s>"
    begin = {"ggml.bos_token_id": len(byte_level[0])}
    for pre, expected in (("llama-bpe", True), ("smollm", False)):
        tokens = converted(byte_level_values(byte_level, pre, **begin)).encode("a").tokens
        assert (tokens[0] == CONTROL) is expected


def test_padding_tokens_are_no_tokens(byte_level: tuple[list[str], list[str]]) -> None:
    """Converters fill the vocabulary up to the size of the embedding."""
    values = byte_level_values(byte_level, "qwen2")
    values["ggml.tokens"] = [*values["ggml.tokens"], "[PAD151936]"]
    values["ggml.token_type"] = [*values["ggml.token_type"], int(TokenType.UNUSED)]
    assert "[PAD151936]" not in converted(values).get_vocab()


def test_chat_templates_and_special_tokens_are_those_of_the_file() -> None:
    """As tokenizer_config.json has them, with and without named templates."""
    values = {
        "ggml.model": "gpt2",
        "ggml.tokens": ["a", "<s>", "</s>"],
        "ggml.bos_token_id": 1,
        "ggml.eos_token_id": 2,
        "ggml.padding_token_id": 999,
        "chat_template": "one",
    }
    expected = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": "one"}
    assert tokenizer_config(metadata(values)) == expected
    named = tokenizer_config(metadata({**values, "chat_template.tool_use": "two"}))
    assert named["chat_template"] == [
        {"name": "default", "template": "one"},
        {"name": "tool_use", "template": "two"},
    ]


@pytest.mark.parametrize("scores", [[], [0.0]])
def test_scores_that_do_not_fit_are_refused(scores: list[float]) -> None:
    """The merges of SentencePiece follow from them."""
    values = {"ggml.model": "llama", "ggml.tokens": ["a", "b"], "ggml.scores": scores}
    with pytest.raises(GgufError, match=f"for each of the 2 tokens, has {len(scores)}"):
        tokenizer_json(metadata(values))
