"""Generates questions like those of users: a few words, in any case, sometimes in a phrase."""

from __future__ import annotations

import random
from collections.abc import Mapping

from models.demo.rule import STOP_WORDS, WORD, stem

FRAMES = (
    "what is {}", "what are {}", "how does {} work", "explain {}", "{} explained",
    "tell me about {}", "why {}", "how do {} work", "what is the meaning of {}", "{}?",
    "What is {}?", "How does {} work?",
)  # fmt: skip
TAILS = ("guide", "overview", "basics", "definition", "2024", "tutorial")
GREETINGS = (
    "Hello", "Hi there", "Write a poem about the sea", "How are you?", "Tell me a joke",
    "What is your name?", "Translate this into French", "Good morning", "Can you help me?",
    "What can you do?", "Sing a song", "Once upon a time", "Say hello",
)  # fmt: skip

_LENGTH_WEIGHTS = (3, 4, 4, 2, 1, 1)


def content_words(sentence: str) -> list[str]:
    """The words of a sentence that are not stop words, unchanged."""
    return [w for w in WORD.findall(sentence) if w.lower() not in STOP_WORDS and len(w) > 1]


def ask_about(
    sentence: str,
    frequency: Mapping[str, int],
    rng: random.Random,
    *,
    max_words: int,
    loose: bool,
) -> str:
    """A question that `sentence` answers, made of its rarer words.

    `frequency` counts sentences by stem. Loose questions vary case and number, and may be in one of
    the `FRAMES`; others are the words themselves.
    """
    words = content_words(sentence)
    length = rng.choices(range(1, max_words + 1), weights=_LENGTH_WEIGHTS[:max_words])[0]
    rarest = sorted(
        sorted(set(words)), key=lambda word: frequency.get(stem(word), 0) * rng.uniform(0.2, 2)
    )
    chosen = rarest[: min(length, len(words))]
    rng.shuffle(chosen)
    if rng.random() < 0.5:
        chosen.sort(key=sentence.find)
    return _loosened(chosen, rng) if loose else " ".join(chosen)


def _loosened(words: list[str], rng: random.Random) -> str:
    words = [_varied(word, rng) for word in words]
    question = " ".join(words)
    if len(words) > 1 and rng.random() >= 0.8:
        question = f"{' '.join(words[:-1])} and {words[-1]}"
    if rng.random() < 0.35:
        return rng.choice(FRAMES).format(question)
    return f"{question} {rng.choice(TAILS)}" if rng.random() < 0.1 else question


def _varied(word: str, rng: random.Random) -> str:
    choice = rng.random()
    if choice < 0.5:
        word = word.lower()
    elif choice < 0.6:
        word = word.capitalize()
    elif choice < 0.63:
        word = word.upper()
    if rng.random() < 0.12:
        word = word[:-1] if word.endswith("s") and len(word) > 4 else f"{word}s"
    return word
