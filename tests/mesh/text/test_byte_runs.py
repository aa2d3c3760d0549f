"""Runs of byte tokens in byte-fallback vocabularies are decoded in time, in whole characters."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.text.detokenizer import _MAX_HELD, Decoder
from tests.orchestrator.tokenizers_made import byte_fallback

TOKENIZER = byte_fallback()
DECODER = Decoder(TOKENIZER)


def spelled(content: bytes) -> list[int]:
    """The ids of these bytes, one for each."""
    ids = [TOKENIZER.token_to_id(f"<0x{byte:02X}>") for byte in content]
    return [token_id for token_id in ids if token_id is not None]


def texts_of(token_ids: list[int], size: int = 1) -> list[str]:
    """The texts of a stream after each chunk of this size, and at its end."""
    stream = DECODER.stream()
    texts = [stream.push(token_ids[at : at + size]) for at in range(0, len(token_ids), size)]
    return [*texts, stream.flush()]


@pytest.mark.parametrize("text", ["日本語のテキスト" * 40, "😀🦔" * 60, "é" * 300])
@pytest.mark.parametrize("size", [1, 7, 500])
def test_a_long_run_of_bytes_is_not_held_back_to_its_end(text: str, size: int) -> None:
    """Its texts have whole characters, and together equal the decoding of all ids at once."""
    token_ids = spelled(text.encode())
    texts = texts_of(token_ids, size)
    assert "".join(texts) == text == TOKENIZER.decode(token_ids)
    assert max(len(text.encode()) for text in texts) <= max(_MAX_HELD, size) + size + 4


@settings(deadline=None, max_examples=200)
@given(
    text=st.text(alphabet="aé日😀", min_size=1, max_size=120),
    size=st.integers(1, 9),
)
def test_valid_bytes_between_words_are_decoded(text: str, size: int) -> None:
    """A token for a letter ends a run."""
    token_ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert "".join(texts_of(token_ids, size)) == TOKENIZER.decode(token_ids)


@pytest.mark.parametrize("number", [1, _MAX_HELD - 1, _MAX_HELD, _MAX_HELD + 1, 5 * _MAX_HELD])
def test_invalid_bytes_are_replaced(number: int) -> None:
    """By as many U+FFFD as in the library; the words after them are unchanged."""
    token_ids = [*spelled(b"\xff" * number), *TOKENIZER.encode("abc").ids]
    assert "".join(texts_of(token_ids)) == TOKENIZER.decode(token_ids)


def test_released_text_remains_if_a_long_run_becomes_invalid() -> None:
    """The one difference from decoding all ids at once: text beyond the limit is already sent."""
    token_ids = [*spelled("日".encode() * 30 + b"\xff"), *TOKENIZER.encode("abc").ids]
    texts = "".join(texts_of(token_ids))
    assert texts.startswith("日" * 21)
    assert "\ufffd" in texts
    assert texts.endswith("abc")
