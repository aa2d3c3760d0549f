"""Characters that a byte-fallback vocabulary spells in bytes: shown in time, never cut."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.text.detokenizer import _MAX_HELD, Decoder
from tests.orchestrator.tokenizers_made import byte_fallback

TOKENIZER = byte_fallback()
DECODER = Decoder(TOKENIZER)


def spelled(content: bytes) -> list[int]:
    """The ids of these bytes, one each."""
    ids = [TOKENIZER.token_to_id(f"<0x{byte:02X}>") for byte in content]
    return [token_id for token_id in ids if token_id is not None]


def pieces(token_ids: list[int], size: int = 1) -> list[str]:
    """What a stream tells after each chunk of this size, and at its end."""
    stream = DECODER.stream()
    told = [stream.push(token_ids[at : at + size]) for at in range(0, len(token_ids), size)]
    return [*told, stream.flush()]


@pytest.mark.parametrize("text", ["日本語のテキスト" * 40, "😀🦔" * 60, "é" * 300])
@pytest.mark.parametrize("size", [1, 7, 500])
def test_a_long_text_in_bytes_is_not_held_back_to_its_end(text: str, size: int) -> None:
    """It comes in pieces of whole characters, and equals the decode of all at once."""
    token_ids = spelled(text.encode())
    told = pieces(token_ids, size)
    assert "".join(told) == text == TOKENIZER.decode(token_ids)
    assert max(len(piece.encode()) for piece in told) <= max(_MAX_HELD, size) + size + 4


@settings(deadline=None, max_examples=200)
@given(
    text=st.text(alphabet="aé日😀", min_size=1, max_size=120),
    size=st.integers(1, 9),
)
def test_valid_bytes_among_words_come_back(text: str, size: int) -> None:
    """Letters that the vocabulary has end a run, and begin the next one."""
    token_ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert "".join(pieces(token_ids, size)) == TOKENIZER.decode(token_ids)


@pytest.mark.parametrize("number", [1, _MAX_HELD - 1, _MAX_HELD, _MAX_HELD + 1, 5 * _MAX_HELD])
def test_bytes_that_are_no_text_are_replaced(number: int) -> None:
    """As many U+FFFD as the library gives, and the words behind them are whole."""
    token_ids = [*spelled(b"\xff" * number), *TOKENIZER.encode("abc").ids]
    assert "".join(pieces(token_ids)) == TOKENIZER.decode(token_ids)


def test_what_was_shown_stays_when_a_long_run_turns_out_broken() -> None:
    """The one difference from the whole: a held run has a limit, and what is shown is shown."""
    token_ids = [*spelled("日".encode() * 30 + b"\xff"), *TOKENIZER.encode("abc").ids]
    told = "".join(pieces(token_ids))
    assert told.startswith("日" * 21)
    assert "\ufffd" in told
    assert told.endswith("abc")
