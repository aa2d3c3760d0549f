"""Text that is safe to be put into a page: no control characters, no markup.

Only what a browser would take for markup is escaped, so that prose stays as it is:
`a < b & c` is kept, `<b>` becomes `&lt;b>` and `&lt;` becomes `&amp;lt;`. Shown as HTML the
text is exactly what was written; to show it as plain text, turn `&lt;` and `&amp;` back.
"""

from __future__ import annotations

import re
from html import unescape

MAX_REFERENCE = 34
"""Characters of a character reference, such as `&lt;`; the longest name has 32."""

# Control characters but tab and line feed; those that reverse or nest the direction of writing;
# and what is no character at all.
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
_UNFINISHED = re.compile(rf"(?:<|&#?[A-Za-z0-9]{{0,{MAX_REFERENCE - 1}}})\Z")


def without_control_characters(text: str) -> str:
    """`text` without characters that show nothing, or make other text look like what it isn't."""
    return text.translate(_REMOVED)


def escape(text: str) -> str:
    """`text` with everything escaped that a browser would take for markup."""
    return _OPENS_TAG.sub("&lt;", _REFERENCE.sub(_escape_reference, text))


def clean(text: str) -> str:
    """`text`, whole, as it may be shown."""
    return escape(without_control_characters(text))


def _escape_reference(found: re.Match[str]) -> str:
    reference = found[0]
    return "&amp;" + reference[1:] if unescape(reference) != reference else reference


class MarkupEscape:
    """Text goes in by `push` and comes out escaped, the same however it was cut."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, text: str) -> str:
        """Takes more text, gives what can be shown."""
        text = self._held + text
        unfinished = _UNFINISHED.search(text)
        begin = unfinished.start() if unfinished else len(text)
        self._held = text[begin:]
        return escape(text[:begin])

    def flush(self) -> str:
        """What was held back; at the end of the text."""
        held, self._held = self._held, ""
        return escape(held)
