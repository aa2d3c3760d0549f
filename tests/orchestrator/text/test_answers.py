"""Chat answers, echo and constraints, through the real orchestrator."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from mesh.errors import ErrorKind, MeshError, invalid
from mesh.v1 import common_pb2, orchestrator_pb2
from orchestrator.text import assembler
from tests.orchestrator.fakes import SCRIPT, FakeInference, Orchestrator, orchestrator
from tests.orchestrator.test_service import generate, request, text_of
from tests.orchestrator.tokenizers_made import byte_level
from tests.tokenizer.templates import CHATML, LLAMA3, MISTRAL

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = '{"name": "f", "arguments": {"city": "Rome"}}'


def chat(content: str = "Hi", *, tools: bool = True, **fields: Any) -> Any:
    """A chat request, with a tool or without."""
    prompt = common_pb2.ChatPrompt(
        messages=[common_pb2.ChatMessage(role="user", content=content)],
        tools_json=json.dumps([TOOL]) if tools else "",
    )
    return orchestrator_pb2.GenerateRequest(chat=prompt, **fields)


def calls_of(events: list[Any]) -> list[tuple[str, str]]:
    """Names and arguments of the tool calls in a stream."""
    calls: dict[int, tuple[str, str]] = {}
    for delta in (call for event in events for call in event.delta.tool_calls):
        name, arguments = calls.get(delta.index, ("", ""))
        calls[delta.index] = (name + delta.name, arguments + delta.arguments)
    return list(calls.values())


@pytest.mark.parametrize(
    ("template", "text", "shown"),
    [
        (CHATML, f"See:\n<tool_call>\n{CALL}\n</tool_call>", "See:"),
        (LLAMA3, CALL.replace("arguments", "parameters"), ""),
        (MISTRAL, f"[TOOL_CALLS] [{CALL}]", ""),
        (MISTRAL, '[TOOL_CALLS]f[ARGS]{"city": "Rome"}', ""),
        (
            f"{CHATML}<function=",
            "See:<tool_call><function=f><parameter=city>Rome</parameter></function></tool_call>",
            "See:",
        ),
        (
            f"{CHATML}<|channel|>",
            "<|channel|>final<|message|>See:<|end|><|start|>assistant<|channel|>commentary "
            'to=functions.f<|message|>{"city": "Rome"}<|call|>',
            "See:",
        ),
    ],
)
async def test_calls_are_parsed_in_the_models_format(template: str, text: str, shown: str) -> None:
    """The chat template decides; log probabilities are of the text that is shown."""
    engine = FakeInference(text)
    async with orchestrator(engine, template=template) as running:
        events = await generate(running, chat(sampling={"max_tokens": 500, "num_logprobs": 0}))
    assert text_of(events) == shown
    assert calls_of(events) == [("f", '{"city": "Rome"}')]
    logprobs = [each for event in events for each in event.delta.logprobs]
    assert "".join(each.token for each in logprobs) == shown
    assert events[-1].finish.usage.completion_tokens == len(engine.ids)


async def test_an_operator_chooses_the_formats() -> None:
    """Instead of those that the chat template shows."""
    text = f"<think>Hm</think>[f(city='Rome')] and <tool_call>{CALL}</tool_call>"
    engine = FakeInference(text)
    choices = {"tool_parser": "pythonic", "reasoning_parser": "none"}
    async with orchestrator(engine, template=CHATML, **choices) as running:
        whole = await generate(running, chat())
    assert text_of(whole) == text
    engine = FakeInference(text)
    async with orchestrator(engine, template=CHATML, tool_parser="pythonic") as running:
        events = await generate(running, chat())
    assert calls_of(events) == [("f", '{"city": "Rome"}')]
    assert text_of(events) == text[text.index("and") :]


async def test_a_generic_tool_prompt_is_answered_in_its_format() -> None:
    """Hermes' calls are parsed, whatever format the template seems to have; the start says so."""
    for template in ("", LLAMA3):
        engine = FakeInference(f"<tool_call>\n{CALL}\n</tool_call>")
        async with orchestrator(engine, template=template) as running:
            running.tokenizer.tool_prompt = common_pb2.TOOL_PROMPT_GENERIC
            events = await generate(running, chat(sampling={"max_tokens": 500}))
            assert running.tokenizer.max_tokens == [engine.context_length]
        assert events[0].started.tool_prompt == common_pb2.TOOL_PROMPT_GENERIC
        assert calls_of(events) == [("f", '{"city": "Rome"}')]
        assert text_of(events) == ""


async def test_without_tools_a_call_is_text() -> None:
    """Calls are parsed only for conversations with tools."""
    text = f"<tool_call>{CALL}</tool_call>"
    async with orchestrator(FakeInference(text), template=CHATML) as running:
        plain = await generate(running, chat(tools=False, sampling={"max_tokens": 500}))
        raw = await generate(running, request(sampling={"max_tokens": 500}))
    assert text_of(plain) == text_of(raw) == text
    assert calls_of(plain) == []


async def test_reasoning_is_separated_from_the_answer() -> None:
    """By its tags, or by a tag that the prompt opened; in a text completion it stays text."""
    text = "<think>\nHm, 2.\n</think>\n\nTwo."
    async with orchestrator(FakeInference(text), template=CHATML) as running:
        events = await generate(running, chat(tools=False, sampling={"max_tokens": 500}))
        raw = await generate(running, request(sampling={"max_tokens": 500}))
    assert text_of(events) == "Two."
    assert "".join(event.delta.reasoning for event in events) == "Hm, 2."
    assert text_of(raw) == text
    begun = FakeInference("Hm.</think>Two.")
    async with orchestrator(begun, template=CHATML) as running:
        events = await generate(running, chat("Hi<think>\n", sampling={"max_tokens": 500}))
    assert text_of(events) == "Two."
    assert "".join(event.delta.reasoning for event in events) == "Hm."


async def constraint_at_the_engine(running: Orchestrator, asked: Any) -> Any:
    """The constraint that the engine receives."""
    await generate(running, asked)
    sampling = running.engine.requests[-1].sampling
    return sampling.constraint if sampling.HasField("constraint") else None


async def test_constraints_reach_the_engine() -> None:
    """Unchanged; a forced call as a grammar; after a reasoning part that is unconstrained."""
    schema = common_pb2.OutputConstraint(json_schema='{"type": "object"}')
    any_object = common_pb2.OutputConstraint(json_object=True)
    async with orchestrator(FakeInference(), template=LLAMA3) as running:
        for constraint in (schema, any_object, common_pb2.OutputConstraint(regex="a+")):
            asked = request(sampling={"constraint": constraint})
            assert await constraint_at_the_engine(running, asked) == constraint
        assert await constraint_at_the_engine(running, chat()) is None
        required = orchestrator_pb2.ToolChoice(required=True)
        forced = await constraint_at_the_engine(running, chat(tool_choice=required))
        assert '\\"name\\": \\"f\\"' in forced.grammar
    async with orchestrator(FakeInference(), template=CHATML) as running:
        asked = chat(tools=False, sampling={"constraint": schema})
        assert (
            "thinking? after_thinking" in (await constraint_at_the_engine(running, asked)).grammar
        )


async def test_a_response_format_leaves_calls_possible() -> None:
    """Where the model decides; without tools the answer alone is possible."""
    schema = common_pb2.OutputConstraint(json_schema='{"type": "object"}')
    async with orchestrator(FakeInference(), template=LLAMA3) as running:
        asked = chat(sampling={"constraint": schema})
        both = await constraint_at_the_engine(running, asked)
        assert both.grammar.startswith("start: tool_calls | answer\n")
        assert await constraint_at_the_engine(running, request(sampling=asked.sampling)) == schema
    async with orchestrator(FakeInference(), template=CHATML) as running:
        both = await constraint_at_the_engine(running, asked)
        assert both.grammar.startswith("start: thinking? after_thinking\n")
        assert "after_thinking: tool_calls | answer\n" in both.grammar
    async with orchestrator(FakeInference(CALL), template="{{ messages }}") as running:
        assert await constraint_at_the_engine(running, asked) == schema


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"tool_choice": {"required": True}}, "tools_json"),
        (
            {"tools": False, "sampling": {"constraint": {"json_object": True}}},
            "constraint.json_object",
        ),
    ],
)
async def test_an_engines_error_names_what_the_constraint_was_made_of(
    fields: dict[str, Any], field: str
) -> None:
    """Both constraints are grammars at the engine, because the model can think."""
    engine = FakeInference()
    engine.refusal = invalid("constraint.grammar", "constraint.grammar is not valid: too large")
    async with orchestrator(engine, template=CHATML) as running:
        with pytest.raises(MeshError) as caught:
            await generate(running, chat(**fields))
    assert caught.value.param == field
    assert caught.value.message == f"{field} is not valid: too large"


async def test_invalid_tool_choices_are_refused() -> None:
    """Nothing reaches the engine."""
    schema = common_pb2.OutputConstraint(json_schema="{}")
    asked = [
        (chat(tool_choice={"name": "g"}), "tool_choice.name"),
        (chat(tools=False, tool_choice={"required": True}), "tool_choice"),
        (
            chat(tool_choice={"required": True}, sampling={"constraint": schema}),
            "response_format",
        ),
        (chat(echo=True), "echo"),
        (request(sampling={"constraint": common_pb2.OutputConstraint()}), "constraint"),
        (request(sampling={"num_prompt_logprobs": 21}), "num_prompt_logprobs"),
    ]
    async with orchestrator(FakeInference(), template=CHATML) as running:
        for each, param in asked:
            with pytest.raises(MeshError) as caught:
                await generate(running, each)
            assert caught.value.kind is ErrorKind.INVALID_REQUEST
            assert caught.value.param == param
        assert running.engine.requests == []


async def test_echo_sends_the_prompt_first() -> None:
    """The given text, or the decoded ids; it counts no completion tokens."""
    ids = byte_level().encode("Hello 😀", add_special_tokens=False).ids
    asked = orchestrator_pb2.GenerateRequest(token_ids={"ids": ids}, echo=True)
    async with orchestrator(FakeInference()) as running:
        text = await generate(running, request("Hé", echo=True))
        spelled = await generate(running, asked)
        assert running.tokenizer.decoded == [ids]
    for events, prompt in ((text, "Hé"), (spelled, "Hello 😀")):
        assert events[0].started.model == "fake"
        assert events[0].delta == orchestrator_pb2.Delta(text=prompt)
        assert text_of(events) == prompt + SCRIPT
        assert events[-1].finish.usage.completion_tokens == len(running.engine.ids)


async def test_echo_sends_the_log_probabilities_of_the_prompt() -> None:
    """All tokens but the first have a log probability and alternatives."""
    asked = request("Hello fox", echo=True, sampling={"num_prompt_logprobs": 2})
    ids = byte_level().encode("Hello fox", add_special_tokens=False).ids
    async with orchestrator(FakeInference()) as running:
        events = await generate(running, asked)
    first, *others = events[1].delta.logprobs
    assert not first.HasField("logprob")
    assert [each.logprob for each in others] == [-i for i in ids[1:]]
    assert all(len(each.top) == 2 for each in others)
    assert b"".join(each.token_bytes for each in (first, *others)) == b"Hello fox"
    assert events[1].delta.num_tokens == 0


async def test_a_long_echo_lets_others_run() -> None:
    """Its log probabilities are sent in parts, and the event loop runs between them."""
    ids = byte_level().encode("Hello fox ", add_special_tokens=False).ids * 200
    asked = orchestrator_pb2.GenerateRequest(
        token_ids={"ids": ids},
        echo=True,
        echo_in_parts=True,
        sampling={"num_prompt_logprobs": 2, "max_tokens": 1},
    )
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with orchestrator(FakeInference()) as running:
        counting, seen = asyncio.create_task(count_turns()), list[int]()
        convert = assembler.delta_logprob

        def converting(*args: Any) -> Any:
            seen.append(turns)
            return convert(*args)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(assembler, "delta_logprob", converting)
            events = await generate(running, asked)
        counting.cancel()
    echoes = [
        event.delta for event in events if event.delta.logprobs and not event.delta.num_tokens
    ]
    assert [len(each.logprobs) for each in echoes[:-1]] == [assembler.ECHO_TOKENS] * (
        len(echoes) - 1
    )
    assert sum(len(each.logprobs) for each in echoes) == len(ids)
    assert "".join(each.text for each in echoes) == "Hello fox " * 200
    assert len(set(seen)) >= len(echoes)


async def test_an_older_gateway_gets_the_echo_in_one_delta() -> None:
    """It takes the first delta for the whole prompt."""
    ids = byte_level().encode("Hello fox ", add_special_tokens=False).ids * 200
    asked = orchestrator_pb2.GenerateRequest(
        token_ids={"ids": ids}, echo=True, sampling={"num_prompt_logprobs": 2, "max_tokens": 1}
    )
    async with orchestrator(FakeInference()) as running:
        events = await generate(running, asked)
    [echo] = [each.delta for each in events if each.delta.text and not each.delta.num_tokens]
    assert len(echo.logprobs) == len(ids)
    assert echo.text == "Hello fox " * 200


async def test_missing_prompt_log_probabilities_are_an_error() -> None:
    """The engine does not support them; they are not silently omitted."""
    engine = FakeInference()
    engine.prompt_logprobs = False
    asked = request("Hello fox", echo=True, sampling={"num_prompt_logprobs": 2})
    async with orchestrator(engine) as running:
        with pytest.raises(MeshError) as caught:
            await generate(running, asked)
    assert caught.value.kind is ErrorKind.INVALID_REQUEST
    assert caught.value.param == "num_prompt_logprobs"
