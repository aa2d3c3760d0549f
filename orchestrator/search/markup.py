"""Sanitizes text for display in a web page: no control characters, no markup.

Only text that a browser would parse as markup is escaped, so prose stays unchanged:
`a < b & c` is kept, `<b>` becomes `&lt;b>` and `&lt;` becomes `&amp;lt;`. Rendered as HTML, the
result shows exactly the original text; to show it as plain text, decode `&lt;` and `&amp;`.
"""

from __future__ import annotations

import re
from html import unescape

MAX_REFERENCE = 34
"""Maximum characters of a character reference, such as `&lt;`; the longest name has 32."""

# Control characters except tab and line feed; bidirectional overrides, embeddings and isolates;
# Unicode noncharacters.
_REMOVED = dict.fromkeys(
    [
        *(code for code in range(0x20) if code not in (0x09, 0x0A)),
        *range(0x7F, 0xA0),
        *range(0x202A, 0x202F),
        *range(0x2066, 0x206A),
        *range(0xFDD0, 0xFDF0),
        *(plane << 16 | low for plane in range(17) for low in (0xFFFE, 0xFFFF)),
    ]
)
_OPENS_TAG = re.compile(r"<(?=[A-Za-z/!?])")
_REFERENCE = re.compile(rf"&#?[A-Za-z0-9]{{0,{MAX_REFERENCE}}};?")
_INCOMPLETE = re.compile(rf"(?:<|&#?[A-Za-z0-9]{{0,{MAX_REFERENCE - 1}}})\Z")


def strip_control_characters(text: str) -> str:
    """Removes control characters, bidirectional overrides and noncharacters from `text`."""
    return text.translate(_REMOVED)


def escape(text: str) -> str:
    """Escapes everything in `text` that a browser would parse as markup."""
    return _OPENS_TAG.sub("&lt;", _REFERENCE.sub(_escape_reference, text))


def sanitize(text: str) -> str:
    """Returns a complete `text` without control characters and with its markup escaped."""
    return escape(strip_control_characters(text))


def _escape_reference(match: re.Match[str]) -> str:
    reference = match[0]
    return "&amp;" + reference[1:] if unescape(reference) != reference else reference


class MarkupEscaper:
    """Escapes markup in a stream of text; the output does not depend on how the text is split."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, text: str) -> str:
        """Adds text; returns the escaped text that later text can no longer change."""
        text = self._held + text
        incomplete = _INCOMPLETE.search(text)
        begin = incomplete.start() if incomplete else len(text)
        self._held = text[begin:]
        return escape(text[:begin])

    def flush(self) -> str:
        """Returns the text held back; call it once, at the end of the stream."""
        held, self._held = self._held, ""
        return escape(held)
