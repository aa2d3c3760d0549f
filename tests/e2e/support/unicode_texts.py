"""Random texts of many kinds of characters; the same seed gives the same texts."""

from __future__ import annotations

import random

RANGES = [
    (0x00, 0x7F),  # control characters included
    (0x80, 0x24F),
    (0x300, 0x36F),  # combining marks
    (0x590, 0x6FF),  # right to left
    (0x900, 0xD7F),  # Indic scripts, which combine
    (0x2000, 0x206F),  # spaces, joiners, line and paragraph separators
    (0x3040, 0x30FF),
    (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A3),
    (0xE000, 0xE0FF),  # private use
    (0xFE00, 0xFE0F),  # variation selectors
    (0xFFF0, 0xFFFF),
    (0x1F300, 0x1FAFF),  # emoji
    (0x20000, 0x2A6DF),
    (0xE0000, 0xE007F),  # tags
    (0x10FF00, 0x10FFFF),
]
SEQUENCES = [
    "👩‍👩‍👧",
    "🏳️‍🌈",
    "🇫🇷",
    "é",
    "e\u0301",
    "\r\n",
    "\u2028",
    "ﷺ",
    "<b>",
    '"\\',
    "data: [DONE]\n\n",
]


def random_text(rng: random.Random) -> str:
    """A text of 1 to 40 random characters or sequences."""
    pieces = []
    for _ in range(rng.randint(1, 40)):
        if rng.random() < 0.15:
            pieces.append(rng.choice(SEQUENCES))
        else:
            pieces.append(chr(rng.randint(*rng.choice(RANGES))))
    return "".join(pieces)
