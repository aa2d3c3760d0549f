"""Texts and pairs for encoders: special tokens, truncation as the library's, and prompts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from mesh.errors import ErrorKind, MeshError
from mesh.process.lifecycle import StartupError
from mesh.protocol.model_kind import InputUse
from tokenizer.embedding_prompts import PROMPTS_FILE, read_prompts
from tokenizer.texts import TextEncoder, longest_first

WORDS = ["the", "quick", "brown", "fox", "jump", "##ed", "##s", "over", "dog", "é"]


def wordpiece() -> Tokenizer:
    """BERT's tokenizer with few words."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    ids = {token: number for number, token in enumerate(vocabulary)}
    library = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    library.normalizer = normalizers.BertNormalizer()
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return library


TEXTS = ["The quick brown fox jumped", "dog", "", "jumps over the dog " * 6]
SECONDS = ["over the dog", "the quick brown fox " * 4, "fox", "dog " * 11]


def test_texts_have_special_tokens() -> None:
    """All of type 0, one text or several."""
    encoder = TextEncoder(wordpiece())
    expected = [wordpiece().encode(text).ids for text in TEXTS]
    assert [each.token_ids for each in encoder.encode(TEXTS)] == expected
    assert [each.num_first_tokens for each in encoder.encode(TEXTS)] == list(map(len, expected))
    assert encoder.encode(TEXTS[:1])[0].token_ids == expected[0]


@pytest.mark.parametrize("limit", [2, 3, 5, 8, 100])
def test_long_texts_are_cut_as_by_the_library(limit: int) -> None:
    """The special tokens stay."""
    library = wordpiece()
    library.enable_truncation(limit)
    expected = [library.encode(text).ids for text in TEXTS]
    found = TextEncoder(wordpiece()).encode(TEXTS, limit=limit)
    assert [each.token_ids for each in found] == expected


@pytest.mark.parametrize("limit", [0, 3, 4, 7, 12, 16, 21, 100])
def test_pairs_are_cut_as_by_the_library(limit: int) -> None:
    """With token types; the longer text is cut first."""
    library = wordpiece()
    if limit:
        library.enable_truncation(limit, strategy="longest_first")
    found = TextEncoder(wordpiece()).encode(TEXTS, SECONDS, limit)
    for (ids, num_first), text, second in zip(found, TEXTS, SECONDS, strict=True):
        expected = library.encode(text, second)
        assert ids == expected.ids
        assert [int(place >= num_first) for place in range(len(ids))] == expected.type_ids


def test_the_room_is_never_exceeded() -> None:
    """For all small lengths: nothing is cut that fits, and the shorter text only if it must."""
    for one in range(8):
        for other in range(8):
            for room in range(16):
                first, second = longest_first(one, other, room)
                assert first <= one
                assert second <= other
                assert first + second == min(room, one + other)


PROMPTS = {"query": "query: ", "passage": "passage: ", "sts": "similar: "}


@pytest.mark.parametrize(
    ("config", "name", "use", "expected"),
    [
        ({}, "", "query", ""),
        ({"prompts": PROMPTS}, "", "", ""),
        ({"prompts": PROMPTS}, "", "query", "query: "),
        ({"prompts": PROMPTS}, "", "document", "passage: "),
        ({"prompts": PROMPTS}, "sts", "query", "similar: "),
        ({"prompts": PROMPTS, "default_prompt_name": "sts"}, "", "", "similar: "),
        ({"prompts": {"a": "A "}, "default_prompt_name": "a"}, "", "query", "A "),
    ],
)
def test_the_prompt_of_a_text(
    config: dict[str, Any], name: str, use: InputUse, expected: str
) -> None:
    """By name, else by use, else the model's default one."""
    contents = {PROMPTS_FILE: json.dumps(config).encode()} if config else {}
    assert read_prompts(contents).choose(name, use) == expected


def test_an_unknown_prompt_is_refused() -> None:
    """The message names the model's prompts."""
    prompts = read_prompts({PROMPTS_FILE: json.dumps({"prompts": PROMPTS}).encode()})
    with pytest.raises(MeshError, match=r"prompts \(passage, query, sts\), given 'poem'") as caught:
        prompts.choose("poem", "")
    assert (caught.value.kind, caught.value.param) == (ErrorKind.INVALID_REQUEST, "prompt_name")
    with pytest.raises(MeshError, match=r"\(none\)"):
        read_prompts({}).choose("query", "")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"prompts": {"a": 5}}, "must be an object of strings"),
        ({"prompts": ["a"]}, "must be an object of strings"),
        ({"default_prompt_name": "a"}, "must be one of prompts"),
    ],
)
def test_invalid_files(content: dict[str, Any], words: str) -> None:
    """They end the start."""
    with pytest.raises(StartupError, match=words):
        read_prompts({PROMPTS_FILE: json.dumps(content).encode()})
