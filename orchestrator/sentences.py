"""Splits running text into sentences."""

from __future__ import annotations

from sentencex import segment


def split_sentences(text: str, language: str = "en") -> list[str]:
    """The sentences of `text`, stripped, inner white space folded, empty ones dropped."""
    return [
        folded for sentence in segment(language, text) if (folded := " ".join(sentence.split()))
    ]
