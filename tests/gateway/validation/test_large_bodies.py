"""Large bodies: refused by size before they are validated, and parsed outside the event loop."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from gateway.schemas.chat import ChatCompletionRequest, ChatMessage
from gateway.validation.body import LARGE_BODY_BYTES
from mesh.protocol.chat import MAX_MESSAGES
from tests.gateway.direct import direct_client

CHAT = "/v1/chat/completions"


async def test_too_many_messages_are_refused_before_any_is_validated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The limit is OpenAI's; the error names it and the number, not an invalid message."""
    monkeypatch.setattr(ChatMessage, "model_validate", pytest.fail)
    body = {"model": "", "messages": [{"role": 7}] * 20_000}
    async with direct_client() as client:
        error = (await client.post(CHAT, json=body)).json()["error"]
    assert error["message"] == f"messages must have at most {MAX_MESSAGES} items, given 20000"
    assert error["param"] == "messages"


async def test_as_many_messages_as_allowed_are_accepted() -> None:
    """The limit itself."""
    body = {"model": "", "messages": [{"role": "user", "content": "Hi"}] * MAX_MESSAGES}
    async with direct_client() as client:
        assert (await client.post(CHAT, json=body)).status_code == 200


@pytest.mark.parametrize("is_large", [False, True])
async def test_a_large_body_is_parsed_and_converted_in_a_thread(
    monkeypatch: pytest.MonkeyPatch, is_large: bool
) -> None:
    """A small one on the event loop, which takes less time than a change of threads."""
    threads: dict[str, int] = {}
    generations = ChatCompletionRequest.generations

    def observed(self: ChatCompletionRequest) -> Any:
        threads["generations"] = threading.get_ident()
        return generations(self)

    def loads(*args: Any, **kwargs: Any) -> Any:
        threads["parse"] = threading.get_ident()
        return json.loads(*args, **kwargs)

    monkeypatch.setattr(ChatCompletionRequest, "generations", observed)
    monkeypatch.setattr("gateway.validation.json_body._DECODER.decode", loads)
    content = "x" * (LARGE_BODY_BYTES if is_large else 10)
    body = {"model": "", "messages": [{"role": "user", "content": content}]}
    async with direct_client() as client:
        assert (await client.post(CHAT, json=body)).status_code == 200
    loop_thread = threading.get_ident()
    assert threads.keys() == {"parse", "generations"}
    for thread in threads.values():
        assert (thread != loop_thread) is is_large
