"""The documents that every search backend holds in these tests."""

from __future__ import annotations

LONG = " ".join(f"Sentence number {n} speaks of nothing in particular." for n in range(40))

DOCUMENTS = [
    ("Foxes", "https://x.org/foxes", "A fox is a small wild dog. Foxes live in dens.", False),
    ("Dogs", "https://x.org/dogs", "A dog is a tame animal. Every fox avoids a dog.", False),
    ("Hunting", "https://x.org/hunting", "Hunting a fox is bloody.", True),
    ("Long", "https://x.org/long", f"{LONG} The lynx is a shy cat. {LONG}", False),
]
"""Title, URL, text, unsafe."""
