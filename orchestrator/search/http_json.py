"""HTTP client of servers that answer in JSON: search engines, encoders, rerankers."""

from __future__ import annotations

import json
from collections.abc import Mapping

import httpx

MAX_BYTES = 8 * 1024 * 1024
"""Maximum size of a response body."""


MAX_REASON_CHARACTERS = 300
"""Maximum length of a server's own message in an error."""


class HttpJsonError(Exception):
    """The server returned an error or an invalid response; the message has no credentials."""

    def __init__(self, message: str, status: int = httpx.codes.OK) -> None:
        super().__init__(message)
        self.status = status
        """The HTTP status of the response."""


class HttpJsonClient:
    """Client of one server; its base URL may contain a user and a password."""

    def __init__(self, url: str, timeout_seconds: float, *, key: str = "") -> None:
        """Opens no connection. `key` is a bearer token. Raises httpx.InvalidURL."""
        parsed = httpx.URL(url)
        auth = (parsed.username, parsed.password) if parsed.userinfo else None
        self._base = str(parsed.copy_with(userinfo=b"")).rstrip("/")
        self._client = httpx.AsyncClient(
            auth=auth,
            timeout=timeout_seconds,
            trust_env=False,
            headers={
                "accept": "application/json",
                **({"authorization": f"Bearer {key}"} if key else {}),
            },
        )

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: object = None,
    ) -> Mapping[str, object]:
        """Returns the response's JSON object. Raises HttpJsonError or httpx.HTTPError."""
        async with self._client.stream(
            method, f"{self._base}{path}", params=params, json=body
        ) as response:
            content = bytearray()
            async for chunk in response.aiter_bytes():
                content += chunk
                if len(content) > MAX_BYTES:
                    raise HttpJsonError(f"response must be at most {MAX_BYTES} bytes")
        status = response.status_code
        if status != httpx.codes.OK:
            raise HttpJsonError(f"server returned HTTP {status}{_reason(bytes(content))}", status)
        try:
            answer = json.loads(bytes(content))
        except ValueError as error:
            raise HttpJsonError("response must be JSON") from error
        if not isinstance(answer, dict):
            raise HttpJsonError("response must be a JSON object")
        return answer

    async def close(self) -> None:
        """Closes all connections."""
        await self._client.aclose()


def _reason(content: bytes) -> str:
    """The message of an error in the form of OpenAI, TEI or FastAPI, after a colon, or ""."""
    try:
        body = json.loads(content)
    except ValueError:
        return ""
    error = body.get("error") if isinstance(body, dict) else None
    fields = error if isinstance(error, dict) else body if isinstance(body, dict) else {}
    texts = (fields.get("message"), error, fields.get("detail"))
    found = next((" ".join(text.split()) for text in texts if isinstance(text, str)), "")
    printable = "".join(filter(str.isprintable, found))[:MAX_REASON_CHARACTERS]
    return f": {printable}" if printable else ""


def text_field(fields: Mapping[str, object], name: str) -> str:
    """A string field; "" if it is missing or of another type."""
    value = fields.get(name)
    return value if isinstance(value, str) else ""


def number_field(fields: Mapping[str, object], name: str) -> float:
    """A numeric field; 0 if it is missing or of another type."""
    value = fields.get(name)
    return float(value) if isinstance(value, int | float) else 0.0
