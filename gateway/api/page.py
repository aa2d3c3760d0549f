"""The search page at `/`: static files, read once at start."""

from __future__ import annotations

from html import escape
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

FOLDER = Path(__file__).parents[1] / "static"
TRACE_URL_MARK = "{{trace_url_template}}"

_HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": "default-src 'self'; img-src 'self' data:; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


STATIC_FILES = {
    "search.css": "text/css",
    "search.js": "text/javascript",
    "answer.js": "text/javascript",
    "figures.js": "text/javascript",
    "markdown.js": "text/javascript",
    "stream.js": "text/javascript",
}


class Page:
    """The page, its style sheet and its scripts."""

    def __init__(self, trace_url_template: str) -> None:
        page = (FOLDER / "index.html").read_text(encoding="utf-8")
        self._page = page.replace(TRACE_URL_MARK, escape(trace_url_template)).encode()
        self._files = {name: (FOLDER / name).read_bytes() for name in STATIC_FILES}

    async def index(self, request: Request) -> Response:
        """Return the page."""
        return Response(self._page, headers=_HEADERS, media_type="text/html")

    async def file(self, request: Request) -> Response:
        """Return a style sheet or script of the page by its path."""
        name: str = request.scope["path"].removeprefix("/")
        return Response(self._files[name], headers=_HEADERS, media_type=STATIC_FILES[name])
