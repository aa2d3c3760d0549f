"""The tree of an HTML page, of a bounded depth."""

from __future__ import annotations

from typing import Any

from bs4 import BeautifulSoup
from bs4.element import Tag

MAX_DEPTH = 250
"""Elements inside one another; a deeper one closes the inner half of them. Browsers bound the depth
too, at 512: the time for a tree grows with the product of its size and its depth. trafilatura's
parser (libxml2) allows 256."""


class HtmlTree(BeautifulSoup):
    """A page, parsed as `html.parser` does."""

    def __init__(self, text: str) -> None:
        super().__init__(text, "html.parser")

    def handle_starttag(self, *args: Any, **named: Any) -> Tag | None:
        """Called by the parser for each element that begins."""
        if len(self.tagStack) > MAX_DEPTH:
            for each in reversed(self.tagStack[MAX_DEPTH // 2 :]):
                self.handle_endtag(each.name, each.prefix)
        made: Tag | None = super().handle_starttag(*args, **named)
        return made
