"""Questions to search engines over HTTP, answered in JSON, of bounded size."""

from __future__ import annotations

import json
from collections.abc import Mapping

import httpx

MAX_BYTES = 8 * 1024 * 1024


class SearchEngineError(Exception):
    """The engine did not answer as it should; the message has no credentials."""


class HttpEngine:
    """One engine below one URL, which may have a user and a password."""

    def __init__(self, url: str, timeout_seconds: float) -> None:
        """Connects to nothing yet. Raises httpx.InvalidURL."""
        parsed = httpx.URL(url)
        auth = (parsed.username, parsed.password) if parsed.userinfo else None
        self._base = str(parsed.copy_with(userinfo=b"")).rstrip("/")
        self._client = httpx.AsyncClient(
            auth=auth,
            timeout=timeout_seconds,
            trust_env=False,
            headers={"accept": "application/json"},
        )

    async def ask(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: object = None,
    ) -> Mapping[str, object]:
        """The JSON object that it answers. Raises SearchEngineError or httpx.HTTPError."""
        async with self._client.stream(
            method, f"{self._base}{path}", params=params, json=body
        ) as response:
            if response.status_code != httpx.codes.OK:
                raise SearchEngineError(f"the search engine answered {response.status_code}")
            content = bytearray()
            async for chunk in response.aiter_bytes():
                content += chunk
                if len(content) > MAX_BYTES:
                    raise SearchEngineError(f"the answer has more than {MAX_BYTES} bytes")
        try:
            answer = json.loads(bytes(content))
        except ValueError as error:
            raise SearchEngineError("the answer is no JSON") from error
        if not isinstance(answer, dict):
            raise SearchEngineError("the answer is no JSON object")
        return answer

    async def close(self) -> None:
        """Closes its connections."""
        await self._client.aclose()


def text_field(fields: Mapping[str, object], name: str) -> str:
    """A field of text; "" where it is missing or something else."""
    value = fields.get(name)
    return value if isinstance(value, str) else ""


def number_field(fields: Mapping[str, object], name: str) -> float:
    """A field with a number; 0 where it is missing or something else."""
    value = fields.get(name)
    return float(value) if isinstance(value, int | float) else 0.0
