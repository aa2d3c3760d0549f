"""Incremental decoding equals decoding all ids at once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from mesh.text.detokenizer import Decoder
from tests.orchestrator.tokenizers_made import byte_fallback, byte_level

TOKENIZERS = {"byte-level": byte_level(), "byte-fallback": byte_fallback()}
DECODERS = {name: Decoder(tokenizer) for name, tokenizer in TOKENIZERS.items()}


def texts_of(decoder: Decoder, token_ids: list[int], sizes: list[int]) -> list[str]:
    """The texts of a stream whose chunks have these sizes, repeated."""
    stream, texts, position, turn = decoder.stream(), [], 0, 0
    while position < len(token_ids):
        size = sizes[turn % len(sizes)]
        texts.append(stream.push(token_ids[position : position + size]))
        position, turn = position + size, turn + 1
    return [*texts, stream.flush()]


def whole(tokenizer: Tokenizer, token_ids: list[int]) -> str:
    return tokenizer.decode(token_ids, skip_special_tokens=True)


SIZES = st.lists(st.integers(1, 7), min_size=1, max_size=4)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None, max_examples=300)
@given(text=st.text(max_size=120), sizes=SIZES)
def test_any_text_is_restored(name: str, text: str, sizes: list[int]) -> None:
    """For any text and any chunk sizes."""
    tokenizer = TOKENIZERS[name]
    token_ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert "".join(texts_of(DECODERS[name], token_ids, sizes)) == whole(tokenizer, token_ids)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None, max_examples=300)
@given(data=st.data(), sizes=SIZES)
def test_any_ids_decode_as_a_whole(name: str, data: st.DataObject, sizes: list[int]) -> None:
    """Also ids whose bytes are invalid UTF-8."""
    tokenizer = TOKENIZERS[name]
    token_ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=150))
    assert "".join(texts_of(DECODERS[name], token_ids, sizes)) == whole(tokenizer, token_ids)


@settings(deadline=None, max_examples=200)
@given(text=st.text(alphabet="ab cd😀é, T日.", min_size=100, max_size=300))
def test_long_texts_of_a_byte_fallback_vocabulary(text: str) -> None:
    """Text longer than the window is neither lost nor duplicated."""
    tokenizer = TOKENIZERS["byte-fallback"]
    token_ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert "".join(texts_of(DECODERS["byte-fallback"], token_ids, [1, 3])) == whole(
        tokenizer, token_ids
    )


def test_an_incomplete_character_is_held_back() -> None:
    """No part of an emoji is returned alone."""
    token_ids = TOKENIZERS["byte-level"].encode("a😀b", add_special_tokens=False).ids
    texts = texts_of(DECODERS["byte-level"], token_ids, [1])
    assert "�" not in "".join(texts)
    assert "😀" in texts or "a😀" in texts or any("😀" in text for text in texts)


def test_a_single_token_has_text_and_bytes() -> None:
    """Log probabilities need the text of a token, even of half a character."""
    decoder, tokenizer = DECODERS["byte-level"], TOKENIZERS["byte-level"]
    half = tokenizer.encode("🦔", add_special_tokens=False).ids[0]
    assert decoder.token_text(half) == "�"
    assert decoder.token_bytes(half) == "🦔".encode()[: len(decoder.token_bytes(half))]
    assert decoder.token_bytes(10**6) == b""
