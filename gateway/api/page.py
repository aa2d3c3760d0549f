"""The search page at `/`: static files, read once."""

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


class Page:
    """A page, its style and its script."""

    def __init__(self, trace_url_template: str) -> None:
        page = (FOLDER / "index.html").read_text(encoding="utf-8")
        self._page = page.replace(TRACE_URL_MARK, escape(trace_url_template)).encode()
        self._style = (FOLDER / "search.css").read_bytes()
        self._script = (FOLDER / "search.js").read_bytes()

    async def index(self, request: Request) -> Response:
        """The page."""
        return Response(self._page, headers=_HEADERS, media_type="text/html")

    async def style(self, request: Request) -> Response:
        """Its style."""
        return Response(self._style, headers=_HEADERS, media_type="text/css")

    async def script(self, request: Request) -> Response:
        """Its script."""
        return Response(self._script, headers=_HEADERS, media_type="text/javascript")
