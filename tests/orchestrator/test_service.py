"""The RPCs of the orchestrator, between a fake tokenizer and fake engines."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mesh.context import RequestContext, use_request
from mesh.errors import ErrorKind, MeshError
from mesh.rpc.channel import call_unary, open_stream
from mesh.v1 import common_pb2, orchestrator_pb2
from orchestrator import service
from tests.helpers import eventually
from tests.orchestrator.fakes import SCRIPT, FakeInference, Orchestrator, orchestrator
from tests.orchestrator.tokenizers_made import byte_level


def request(text: str = "Hello", **fields: Any) -> orchestrator_pb2.GenerateRequest:
    """A request to continue `text`."""
    return orchestrator_pb2.GenerateRequest(text=text, **fields)


async def generate(
    running: Orchestrator, asked: orchestrator_pb2.GenerateRequest
) -> list[orchestrator_pb2.GenerateResponse]:
    """All messages of a generation."""
    async with open_stream(running.stub.Generate, asked) as responses:
        return [response async for response in responses]


def text_of(events: list[Any]) -> str:
    """The concatenated text of the deltas."""
    return "".join(event.delta.text for event in events)


def kinds_of(events: list[Any]) -> list[str]:
    """Names of the fields that are set, over all messages in order."""
    return [field.name for event in events for field, _ in event.ListFields()]


async def test_started_then_deltas_then_one_finish() -> None:
    """The usage counts every token."""
    async with orchestrator(FakeInference()) as running:
        events = await generate(running, request(sampling={"max_tokens": 500}))
    kinds = kinds_of(events)
    assert kinds[0] == "started"
    assert set(kinds[1:-1]) == {"delta"}
    assert kinds[-1] == "finish"
    assert text_of(events) == SCRIPT
    assert events[0].started.model == "fake"
    finish = events[-1].finish
    assert finish.reason == common_pb2.FINISH_REASON_STOP
    assert finish.usage.completion_tokens == len(running.engine.ids)
    assert sum(event.delta.num_tokens for event in events) == len(running.engine.ids)


async def test_events_that_are_ready_together_share_one_message() -> None:
    """Fewer messages cost less."""
    engine = FakeInference()
    engine.at_once = True
    async with orchestrator(engine) as running:
        [message] = await generate(running, request())
        [stopped] = await generate(running, request(stop=["fox"]))
    assert message.started.model == "fake"
    assert message.delta == orchestrator_pb2.Delta(text=SCRIPT, num_tokens=len(engine.ids))
    assert message.finish.usage.completion_tokens == len(engine.ids)
    assert stopped.delta.text == SCRIPT[: SCRIPT.index("fox")]
    assert stopped.finish.reason == common_pb2.FINISH_REASON_STOP
    assert (message.finish.stop_string, stopped.finish.stop_string) == ("", "fox")


async def test_max_tokens_defaults_to_the_rest_of_the_context() -> None:
    """The engine receives an explicit limit."""
    async with orchestrator(FakeInference(context_length=60)) as running:
        events = await generate(running, request())
    prompt_tokens = events[0].started.prompt_tokens
    assert running.engine.requests[0].sampling.max_tokens == 60 - prompt_tokens


async def test_max_tokens_can_be_fitted_to_the_context() -> None:
    """Only if the request asks for it; a prompt that fills the context is refused all the same."""
    too_many = {"max_tokens": 1000}
    async with orchestrator(FakeInference(context_length=60)) as running:
        with pytest.raises(MeshError) as refused:
            await generate(running, request(sampling=too_many))
        events = await generate(running, request(sampling=too_many, fit_max_tokens=True))
        with pytest.raises(MeshError) as full:
            await generate(running, request("x" * 99, sampling=too_many, fit_max_tokens=True))
    assert refused.value.kind is full.value.kind is ErrorKind.CONTEXT_TOO_LONG
    prompt_tokens = events[0].started.prompt_tokens
    assert running.engine.requests[0].sampling.max_tokens == 60 - prompt_tokens


async def test_tokens_are_counted_as_the_generation_counts_them() -> None:
    """Of conversations, texts and token ids, also of a prompt that no context can hold."""
    chat = common_pb2.ChatPrompt(messages=[{"role": "user", "content": "Hello"}])
    long = "x" * 99
    counted = []
    async with orchestrator(FakeInference(context_length=60)) as running:
        for prompt in ({"chat": chat}, {"text": "Hello"}, {"token_ids": {"ids": [1, 2]}}):
            events = await generate(running, orchestrator_pb2.GenerateRequest(**prompt))
            asked = orchestrator_pb2.CountTokensRequest(**prompt)
            answer = await call_unary(running.stub.CountTokens, asked)
            counted.append((answer.num_tokens, events[0].started.prompt_tokens, answer.model))
        asked = orchestrator_pb2.CountTokensRequest(text=long)
        beyond = (await call_unary(running.stub.CountTokens, asked)).num_tokens
        with pytest.raises(MeshError) as unknown:
            await call_unary(
                running.stub.CountTokens, orchestrator_pb2.CountTokensRequest(text="a", model="b")
            )
    assert [a for a, _, _ in counted] == [b for _, b, _ in counted]
    assert {model for _, _, model in counted} == {"fake"}
    assert beyond > 60
    assert unknown.value.kind is ErrorKind.MODEL_NOT_FOUND


@pytest.mark.parametrize("many", [0, service.MANY_TOKENS])
async def test_tokens_of_texts_and_conversations(
    monkeypatch: pytest.MonkeyPatch, many: int
) -> None:
    """With their spelling if asked for, also of a prompt that no context can hold."""
    monkeypatch.setattr(service, "MANY_TOKENS", many)
    chat = common_pb2.ChatPrompt(messages=[{"role": "user", "content": "Hello"}])
    ids = byte_level().encode("a fox 😀").ids
    tokenize = orchestrator_pb2.TokenizeRequest
    async with orchestrator(FakeInference(context_length=60)) as running:
        tokenized = running.stub.Tokenize
        text = await call_unary(tokenized, tokenize(text="a fox 😀", add_special_tokens=True))
        spelled = await call_unary(tokenized, tokenize(text="a fox 😀", return_token_strs=True))
        talk = await call_unary(tokenized, tokenize(chat=chat, model="fake"))
        long = await call_unary(tokenized, tokenize(text="x" * 99))
        asked = orchestrator_pb2.DetokenizeRequest(token_ids=[0, *ids])
        back = await call_unary(running.stub.Detokenize, asked)
        special = running.tokenizer.special
    assert list(text.token_ids) == list(spelled.token_ids) == ids
    assert list(text.token_strs) == []
    assert list(spelled.token_strs) == [byte_level().id_to_token(each) for each in ids]
    assert list(talk.token_ids) == byte_level().encode("Hello").ids
    assert len(long.token_ids) > 60 == long.context_length
    assert back == orchestrator_pb2.DetokenizeResponse(model="fake", text="<|end|>a fox 😀")
    assert special == [True, False, False, False]


@pytest.mark.parametrize(
    ("fields", "kind", "param"),
    [
        ({}, ErrorKind.INVALID_REQUEST, "prompt"),
        ({"text": "a", "model": "b"}, ErrorKind.MODEL_NOT_FOUND, "model"),
        (
            {"chat": {"messages": [{"role": "user"}], "tools_json": "[5]"}},
            ErrorKind.INVALID_REQUEST,
            "tools[0].function.name",
        ),
    ],
)
async def test_prompts_that_cannot_be_tokenized(
    fields: dict[str, Any], kind: ErrorKind, param: str
) -> None:
    """No prompt, an unknown model, tools that are none."""
    async with orchestrator(FakeInference()) as running:
        with pytest.raises(MeshError) as refused:
            await call_unary(running.stub.Tokenize, orchestrator_pb2.TokenizeRequest(**fields))
    assert (refused.value.kind, refused.value.param) == (kind, param)


@pytest.mark.parametrize(
    "form", [{"json_schema": "{}"}, {"json_object": True}, {"regex": "a"}, {"grammar": "start: A"}]
)
async def test_a_constraint_reaches_the_engine_unchanged(form: dict[str, Any]) -> None:
    """The engine checks and enforces it; a constraint without a form is refused here."""
    constraint = common_pb2.OutputConstraint(**form)
    async with orchestrator(FakeInference()) as running:
        sampling = common_pb2.SamplingParams(constraint=constraint)
        await generate(running, request(sampling=sampling))
        assert running.engine.requests[0].sampling.constraint == constraint
        sampling = common_pb2.SamplingParams(constraint=common_pb2.OutputConstraint())
        forms = "json_schema, json_object, regex, grammar"
        with pytest.raises(MeshError, match=f"constraint must have one of {forms}, given none"):
            await generate(running, request(sampling=sampling))


async def test_a_stop_string_is_not_sent_and_ends_the_engines_stream() -> None:
    """The text ends before the match, although the engine would continue."""
    async with orchestrator(FakeInference()) as running:
        running.engine.delay = 0.005
        events = await generate(running, request(stop=["jumps", "never said"]))
        await eventually(lambda: running.engine.num_open == 0, "the engine's stream is closed")
    assert text_of(events) == SCRIPT[: SCRIPT.index("jumps")]
    assert events[-1].finish.reason == common_pb2.FINISH_REASON_STOP
    assert events[-1].finish.usage.completion_tokens < len(running.engine.ids)


async def test_a_disconnect_during_the_stream_releases_everything() -> None:
    """The cancellation reaches the engine at once."""
    async with orchestrator(FakeInference()) as running:
        running.engine.delay = 0.05
        async with open_stream(running.stub.Generate, request()) as responses:
            for _ in range(3):
                await anext(responses)
            assert running.engine.num_open == 1
        await eventually(lambda: running.engine.num_open == 0, "the engine's stream is closed", 1)


async def test_a_request_can_be_listed_and_cancelled() -> None:
    """ListRequests returns it; CancelRequest ends it with reason abort."""
    async with orchestrator(FakeInference()) as running:
        running.engine.delay = 0.05
        with use_request(RequestContext(request_id="r-7")):
            async with open_stream(running.stub.Generate, request()) as responses:
                for _ in range(3):
                    await anext(responses)
                listing = orchestrator_pb2.ListRequestsRequest()
                [active] = (await call_unary(running.stub.ListRequests, listing)).requests
                cancel = orchestrator_pb2.CancelRequestRequest(request_id="r-7")
                assert (await call_unary(running.stub.CancelRequest, cancel)).cancelled
                rest = [response async for response in responses]
        assert not (await call_unary(running.stub.CancelRequest, cancel)).cancelled
    assert active.request_id == "r-7"
    assert active.method == "Generate"
    assert active.state == orchestrator_pb2.REQUEST_STATE_STREAMING
    assert active.completion_tokens >= 1
    assert rest[-1].finish.reason == common_pb2.FINISH_REASON_ABORT
    assert rest[-1].finish.usage.completion_tokens >= 1


async def test_a_request_over_the_limit_is_refused_at_once() -> None:
    """It does not wait, and the error has a retry delay."""
    async with orchestrator(FakeInference(), max_concurrent_requests=1) as running:
        running.engine.delay = 0.05
        async with open_stream(running.stub.Generate, request()) as responses:
            await anext(responses)
            with pytest.raises(MeshError) as refused:
                await asyncio.wait_for(generate(running, request()), 1)
    assert refused.value.kind is ErrorKind.OVERLOADED
    assert refused.value.retry_after is not None
    assert 0 < refused.value.retry_after <= 30


BAD: list[tuple[dict[str, Any], ErrorKind, str, str]] = [
    ({"model": "nobody"}, ErrorKind.MODEL_NOT_FOUND, "model", "nobody"),
    ({"sampling": {"temperature": 3}}, ErrorKind.INVALID_REQUEST, "temperature", "given 3"),
    ({"sampling": {"max_tokens": 0}}, ErrorKind.INVALID_REQUEST, "max_tokens", "given 0"),
    ({"sampling": {"top_p": 0}}, ErrorKind.INVALID_REQUEST, "top_p", "given 0"),
    ({"sampling": {"logit_bias": {5: 101}}}, ErrorKind.INVALID_REQUEST, "logit_bias", "101"),
    ({"stop": ["x"] * 17}, ErrorKind.INVALID_REQUEST, "stop", "given 17"),
    ({"stop": [""]}, ErrorKind.INVALID_REQUEST, "stop[0]", "given 0"),
    ({"sampling": {"max_tokens": 5000}}, ErrorKind.CONTEXT_TOO_LONG, "max_tokens", "5000"),
    ({"text": "word " * 9000}, ErrorKind.CONTEXT_TOO_LONG, "prompt", "2048"),
    ({"token_ids": {"ids": [5] * 2048}}, ErrorKind.CONTEXT_TOO_LONG, "prompt", "2048"),
    (
        {"chat": {"messages": [{"role": "user", "content": "word " * 9000}]}},
        ErrorKind.CONTEXT_TOO_LONG,
        "messages",
        "2048",
    ),
]


def bad_request(fields: dict[str, Any]) -> orchestrator_pb2.GenerateRequest:
    """A request with these fields, and a text prompt unless they contain a prompt."""
    if "chat" in fields or "token_ids" in fields:
        return orchestrator_pb2.GenerateRequest(**fields)
    return request(**fields)


@pytest.mark.parametrize(("fields", "kind", "param", "named"), BAD)
async def test_errors_for_invalid_fields_name_field_limit_and_value(
    fields: dict[str, Any], kind: ErrorKind, param: str, named: str
) -> None:
    """Nothing reaches the engine, and the next request succeeds."""
    async with orchestrator(FakeInference()) as running:
        with pytest.raises(MeshError) as caught:
            await generate(running, bad_request(fields))
        assert running.engine.requests == []
        assert text_of(await generate(running, request())) == SCRIPT
    assert caught.value.kind is kind
    assert caught.value.param == param
    assert named in caught.value.message


async def test_models_are_listed(caplog: pytest.LogCaptureFixture) -> None:
    """Each model has its context length; gateways ask often, so the access line is for DEBUG."""
    caplog.set_level("DEBUG", "mesh.rpc")
    async with orchestrator(FakeInference(), FakeInference()) as running:
        listed = await call_unary(running.stub.ListModels, orchestrator_pb2.ListModelsRequest())
    [model] = listed.models
    assert model.name == "fake"
    assert model.context_length == 2048
    lines = [each for each in caplog.records if vars(each).get("method") == "ListModels"]
    assert [(each.getMessage(), each.levelname) for each in lines] == [
        ("request finished", "DEBUG")
    ]
