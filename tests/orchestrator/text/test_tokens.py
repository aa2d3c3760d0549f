"""Prompts of every kind, log probabilities, and ends of generations."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.errors import ErrorKind, MeshError
from mesh.v1 import common_pb2, orchestrator_pb2
from tests.orchestrator.fakes import SCRIPT, FakeInference, orchestrator
from tests.orchestrator.test_service import generate, request, text_of
from tests.orchestrator.tokenizers_made import byte_level


@pytest.mark.parametrize("num_logprobs", [0, 2])
async def test_log_probabilities_come_with_their_tokens(num_logprobs: int) -> None:
    """One for each token, with its text, bytes and alternatives; both join to the text."""
    async with orchestrator(FakeInference()) as running:
        running.engine.delay = 0.002
        asked = request(sampling={"num_logprobs": num_logprobs})
        deltas = [event.delta for event in await generate(running, asked) if event.delta.text]
        ids = running.engine.ids
    logprobs = [each for delta in deltas for each in delta.logprobs]
    assert "".join(each.token for each in logprobs) == SCRIPT
    assert b"".join(each.token_bytes for each in logprobs).decode() == SCRIPT
    assert [each.logprob for each in logprobs] == [-token_id for token_id in ids]
    for each in logprobs:
        assert len(each.top) == num_logprobs
        if each.top:
            assert (each.top[0].token, each.top[0].logprob) == (each.token, each.logprob)
            assert each.top[1].logprob < each.logprob
            assert not each.top[1].top


async def test_no_log_probabilities_unless_requested() -> None:
    """They are neither requested from the engine nor sent."""
    async with orchestrator(FakeInference()) as running:
        events = await generate(running, request())
    assert not running.engine.requests[0].sampling.HasField("num_logprobs")
    assert not any(event.delta.logprobs for event in events)


async def test_sampling_reaches_the_engine_unchanged() -> None:
    """Absent fields stay absent, so that the model's defaults apply."""
    given = common_pb2.SamplingParams(
        temperature=0, top_k=5, seed=2**63, max_tokens=4, logit_bias={7: -1.5}, ignore_eos=True
    )
    async with orchestrator(FakeInference()) as running:
        await generate(running, request(sampling=given))
    assert running.engine.requests[0].sampling == given


async def test_max_tokens_ends_with_length() -> None:
    """The usage counts exactly max_tokens."""
    async with orchestrator(FakeInference()) as running:
        events = await generate(running, request(sampling={"max_tokens": 3}))
    assert events[-1].finish.reason == common_pb2.FINISH_REASON_LENGTH
    assert events[-1].finish.usage.completion_tokens == 3
    assert text_of(events) == byte_level().decode(running.engine.ids[:3])


@pytest.mark.parametrize("by", ["stop_token_ids", "eos_token_ids"])
async def test_the_end_token_is_not_part_of_the_text(by: str) -> None:
    """Even if it is an ordinary word; the usage counts it."""
    engine = FakeInference("The end")
    asked = request()
    if by == "stop_token_ids":
        asked.sampling.stop_token_ids.append(engine.ids[-1])
    else:
        engine.eos_token_ids = [engine.ids[-1]]
    async with orchestrator(engine) as running:
        events = await generate(running, asked)
    assert text_of(events) == byte_level().decode(engine.ids[:-1])
    assert events[-1].finish.usage.completion_tokens == len(engine.ids)


async def test_min_tokens_holds_off_stop_strings() -> None:
    """The first one is passed over, the second one ends the text."""
    asked = request(stop=["[1]", "[2]"], sampling={"min_tokens": 50})
    async with orchestrator(FakeInference()) as running:
        held = len(byte_level().encode(SCRIPT.partition(" and naïve")[0]).ids)
        asked.sampling.min_tokens = held
        events = await generate(running, asked)
    assert text_of(events) == SCRIPT.partition("[2]")[0]


async def test_characters_are_never_split() -> None:
    """The text of a token that is part of a character is held back."""
    text = "😀日本語é" * 3
    async with orchestrator(FakeInference(text)) as running:
        running.engine.delay = 0.001
        events = await generate(running, request())
    texts = [event.delta.text for event in events if event.HasField("delta")]
    assert "".join(texts) == text
    assert all(texts)
    assert not any("\N{REPLACEMENT CHARACTER}" in text for text in texts)
    assert len(texts) > 3


async def test_conversations_and_token_ids_are_prompts() -> None:
    """A conversation is rendered by the template; ids are used unchanged."""
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    async with orchestrator(FakeInference()) as running:
        chat = orchestrator_pb2.GenerateRequest(chat={"messages": messages})
        assert text_of(await generate(running, chat)) == SCRIPT
        ids = orchestrator_pb2.GenerateRequest(token_ids={"ids": [5, 6, 7]})
        events = await generate(running, ids)
    assert running.tokenizer.prompts == ["Hi\nHo"]
    assert list(running.engine.requests[1].token_ids) == [5, 6, 7]
    assert events[0].started.prompt_tokens == 3
    assert text_of(events) == SCRIPT


@pytest.mark.parametrize("fields", [{}, {"token_ids": {}}])
async def test_a_request_without_a_prompt_is_refused(fields: dict[str, Any]) -> None:
    """Before any work; the message names the missing field."""
    async with orchestrator(FakeInference()) as running:
        with pytest.raises(MeshError, match="must") as caught:
            await generate(running, orchestrator_pb2.GenerateRequest(**fields))
        assert running.engine.requests == []
    assert caught.value.kind is ErrorKind.INVALID_REQUEST
    assert caught.value.param == "prompt"
