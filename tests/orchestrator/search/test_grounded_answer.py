"""Answers to conversations with sources, and retrieval without a summary, over gRPC."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mesh.errors import ErrorKind, MeshError
from mesh.protocol.chat import ChatMessage, ChatPrompt
from mesh.rpc.channel import call_unary, open_stream
from mesh.v1 import common_pb2, orchestrator_pb2
from orchestrator.index.build import main as build_index
from orchestrator.search.grounded_answer import with_passages
from orchestrator.search.prompt import INSTRUCTIONS, Passage
from tests.orchestrator.fakes import FakeInference, Orchestrator, orchestrator

ANSWER = "A fox is a small wild dog. [1] It can <fly>. [2] Foxes live in dens [9]."
SOURCES = [
    {"position": 1, "title": "Foxes", "url": "f", "snippet": "A fox is a small wild dog."},
    {"position": 2, "title": "Dogs", "url": "d", "snippet": "A dog is a tame animal &amp; pet."},
]


def message(role: str, content: str) -> common_pb2.ChatMessage:
    """A message of a conversation."""
    return common_pb2.ChatMessage(role=role, content=content)


async def answers(
    running: Orchestrator, *messages: common_pb2.ChatMessage, sources: Any = SOURCES, **fields: Any
) -> list[orchestrator_pb2.GenerateResponse]:
    """All messages of a generation with sources."""
    request = orchestrator_pb2.GenerateRequest(
        chat=common_pb2.ChatPrompt(messages=messages), grounding={"sources": sources}, **fields
    )
    async with open_stream(running.stub.Generate, request) as responses:
        return [response async for response in responses]


@pytest.mark.parametrize("at_once", [False, True])
async def test_citations_are_checked_and_grounded(at_once: bool) -> None:
    """Unknown numbers are removed, and each sentence's support is found; text is not escaped."""
    engine = FakeInference(ANSWER)
    engine.at_once = at_once
    async with orchestrator(engine) as running:
        events = await answers(running, message("user", "What is a fox?"))
    text = "".join(event.delta.text for event in events)
    assert text == ANSWER.replace(" [9]", "")
    assert sum(event.delta.num_tokens for event in events) == len(engine.ids)
    details = events[-1].finish.citation_details
    assert [detail.position for detail in details] == [1, 2, 0]
    assert [detail.HasField("span") for detail in details] == [True, False, False]
    sentence = details[0].sentence
    assert text[sentence.begin : sentence.end] == "A fox is a small wild dog."


async def test_the_prompt_is_that_of_a_search() -> None:
    """The question, the sources with their numbers, and the instructions."""
    async with orchestrator(FakeInference()) as running:
        await answers(running, message("system", "Be kind."), message("user", "What is a fox?"))
        await answers(running, message("user", "Fox?"), message("tool", "?"))
        await answers(running, message("user", "Fox?"), sources=[])
    asked, called, empty = running.tokenizer.prompts
    assert asked.startswith(f"Be kind.\n\n{INSTRUCTIONS}\nQuestion: What is a fox?\n\nSources:\n\n")
    assert "[2] Dogs\nA dog is a tame animal & pet. [2]" in asked
    assert called.startswith(f"Fox?\n{INSTRUCTIONS}\n\nSources:\n\n[1] Foxes\n")
    assert "Sources:\n\nNone." in empty


async def test_sources_are_cut_to_the_context() -> None:
    """Only what is in the prompt may be cited."""
    long = [{**SOURCES[0], "snippet": "A fox is wild. " * 40}, SOURCES[1]]
    async with orchestrator(FakeInference(ANSWER, context_length=420)) as running:
        events = await answers(
            running, message("user", "Fox?"), sources=long, sampling={"max_tokens": 80}
        )
    text = "".join(event.delta.text for event in events)
    assert "[1]" in text
    assert "[2]" not in text
    assert len(running.engine.requests[0].token_ids) <= 340


@pytest.mark.parametrize(
    ("sources", "prompt", "param"),
    [
        ([{**SOURCES[0], "position": 2}], {"chat": {"messages": [message("user", "x")]}},
         "grounding.sources[0].position"),
        (SOURCES, {"text": "x"}, "grounding"),
    ],
)  # fmt: skip
async def test_invalid_sources_are_refused(sources: Any, prompt: Any, param: str) -> None:
    """Numbers must be consecutive, and the prompt a conversation."""
    request = orchestrator_pb2.GenerateRequest(grounding={"sources": sources}, **prompt)
    async with orchestrator(FakeInference()) as running:
        with pytest.raises(MeshError) as caught:
            async with open_stream(running.stub.Generate, request) as responses:
                [_ async for _ in responses]
    assert (caught.value.kind, caught.value.param) == (ErrorKind.INVALID_REQUEST, param)


async def test_retrieval_without_a_summary(tmp_path: Path) -> None:
    """No model is called; a failed retrieval says so."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "foxes.md").write_text("# Foxes\n\nA fox is a small wild dog.\n")
    out = str(tmp_path / "index.sqlite3")
    assert build_index([str(tmp_path / "docs"), "--out", out]) == 0
    async with orchestrator(FakeInference(), index=out) as running:
        request = orchestrator_pb2.RetrieveRequest(query=" fox ")
        found = await call_unary(running.stub.Retrieve, request)
        with pytest.raises(MeshError) as caught:
            await call_unary(running.stub.Retrieve, orchestrator_pb2.RetrieveRequest())
        assert running.engine.requests == []
    assert found.results.query == "fox"
    assert [(each.position, each.url) for each in found.results.results] == [(1, "foxes.md")]
    assert (found.num_relevant, found.failed) == (1, False)
    assert caught.value.param == "query"


def test_a_conversation_keeps_its_other_messages() -> None:
    """Only the last one, and the instructions, change."""
    messages = [ChatMessage(role=role, content=role) for role in ("user", "assistant", "user")]
    made = with_passages(ChatPrompt(messages=messages), [Passage("T", "A b.")]).messages
    assert [m.role for m in made] == ["system", "user", "assistant", "user"]
    assert [m.content for m in made[1:3]] == ["user", "assistant"]
    assert made[3].content == "Question: user\n\nSources:\n\n[1] T\nA b. [1]\n\nQuestion: user"
