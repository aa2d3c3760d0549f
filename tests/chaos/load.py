"""Clients that know every answer: greedy text, computed before anything was broken."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx

PROMPTS = tuple(f"{word} is" for word in "Water Light Music Paris Bread Iron Time Rain".split())


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A prompt, and how long the answer is to be."""

    prompt: str
    max_tokens: int

    @property
    def body(self) -> dict[str, object]:
        """As OpenAI's completions take it."""
        return {
            "model": "demo",
            "prompt": self.prompt,
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "ignore_eos": True,
        }


@dataclass(kw_only=True)
class Answer:
    """What a client got."""

    text: str = ""
    status: int = 0
    """Of HTTP; 0: no connection."""
    error: str = ""
    """In the stream, or of the transport."""
    finish_reason: str = ""
    num_finishes: int = 0
    done: bool = False
    """Whether `[DONE]` was the last event."""

    @property
    def complete(self) -> bool:
        """Whether it ended as it should, once."""
        return self.status == 200 and not self.error and self.done and self.num_finishes == 1


@dataclass
class Oracle:
    """The right answers."""

    texts: dict[Question, str] = field(default_factory=dict)

    async def learn(self, url: str, questions: Sequence[Question]) -> None:
        """Asks while nothing is broken, twice: the answers must be the same."""
        async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as client:
            for question in questions:
                first, second = [await ask(client, question) for _ in range(2)]
                assert first.complete, first
                assert first.text == second.text
                assert first.text
                self.texts[question] = first.text

    def check(self, question: Question, answer: Answer) -> None:
        """Fails unless what came is right as far as it goes, and whole if it says so."""
        right = self.texts[question]
        assert right.startswith(answer.text), f"{answer.text!r} is not how {right!r} begins"
        if answer.complete:
            assert answer.text == right
        assert answer.num_finishes <= 1
        assert answer.complete or answer.error or answer.status != 200, f"no true end: {answer}"


async def ask(
    client: httpx.AsyncClient, question: Question, *, started: asyncio.Event | None = None
) -> Answer:
    """One streamed completion, to its end; never raises for what the server did."""
    answer = Answer()
    try:
        request = client.build_request(
            "POST", "/v1/completions", json={**question.body, "stream": True}
        )
        response = await client.send(request, stream=True)
        try:
            answer.status = response.status_code
            if answer.status != 200:
                answer.error = (await response.aread()).decode()
                return answer
            async for line in response.aiter_lines():
                _take(answer, line)
                if answer.text and started is not None:
                    started.set()
        finally:
            await response.aclose()
    except httpx.TransportError as error:
        answer.error = f"{type(error).__name__}: {error}"
    return answer


def _take(answer: Answer, line: str) -> None:
    if not line.startswith("data: "):
        return
    data = line.removeprefix("data: ")
    assert not answer.done, f"{line!r} after [DONE]"
    if data == "[DONE]":
        answer.done = True
        return
    event = json.loads(data)
    if "error" in event:
        answer.error = event["error"]["message"]
        return
    for choice in event["choices"]:
        answer.text += choice["text"]
        if choice["finish_reason"]:
            answer.finish_reason = choice["finish_reason"]
            answer.num_finishes += 1
