"""TokenizerService over gRPC."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import defaultdict
from typing import TypeAlias

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import REGISTRY

from mesh.errors import ErrorKind, MeshError
from mesh.protocol.chat import MAX_MESSAGES
from mesh.rpc.channel import call_unary, open_stream
from mesh.v1 import common_pb2, tokenizer_pb2, tokenizer_pb2_grpc
from tests.helpers import Served, eventually, serve
from tests.tokenizer.conftest import SPECIAL, MakeModel, service_of
from tokenizer import metrics
from tokenizer import service as service_module
from tokenizer.executor import BoundedExecutor
from tokenizer.files import files_sha256
from tokenizer.service import FILE_PART_BYTES, TokenizerService
from tokenizer.tokenizer import SHORT_CHARACTERS

Stub: TypeAlias = "tokenizer_pb2_grpc.TokenizerServiceAsyncStub"
Encode = tokenizer_pb2.EncodeRequest
Message = common_pb2.ChatMessage


NUM_CHECKS = 20


def chat(*messages: Message, **fields: object) -> Encode:
    return Encode(chat=common_pb2.ChatPrompt(messages=messages, **fields))  # type: ignore[arg-type]


async def test_decode_inverts_encode(stub: Stub, service: TokenizerService) -> None:
    """Both responses contain the tokenizer's SHA-256."""
    encoded = await call_unary(stub.Encode, Encode(text="A weir 🌊", add_special_tokens=True))
    request = tokenizer_pb2.DecodeRequest(token_ids=encoded.token_ids, skip_special_tokens=True)
    decoded = await call_unary(stub.Decode, request)
    assert decoded.text == "A weir 🌊"
    assert encoded.token_ids[0] == SPECIAL.index("<s>")
    assert encoded.tokenizer_sha256 == decoded.tokenizer_sha256 == service._files.sha256


async def test_a_chat_has_only_its_templates_special_tokens(stub: Stub) -> None:
    """Tool calls, tools and variables are rendered."""
    calls = json.dumps([{"function": {"name": "f", "arguments": '{"x": [1, "é"]}'}}])
    request = chat(
        Message(role="user", content="Call f."),
        Message(role="assistant", tool_calls_json=calls),
        tools_json='[{"type": "function"}]',
        template_kwargs_json='{"enable_thinking": false}',
    )
    encoded = await call_unary(stub.Encode, request)
    decoded = await call_unary(
        stub.Decode, tokenizer_pb2.DecodeRequest(token_ids=encoded.token_ids)
    )
    assert decoded.text.startswith("<|im_start|>system\n# Tools")
    assert '<tool_call>\n{"name": "f", "arguments": {"x": [1, "é"]}}\n</tool_call>' in decoded.text
    assert decoded.text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


USER = Message(role="user", content="Hi")


@pytest.mark.parametrize(
    ("request_", "param", "message"),
    [
        (Encode(), "input", "input must be text or chat, given neither"),
        (chat(), "messages", "messages must contain at least 1 message, given 0"),
        (chat(Message(role="us er")), "messages[0].role", "given 'us er'"),
        (chat(USER, tools_json="{"), "tools_json", "tools_json must be JSON: "),
        (chat(USER, tools_json="[1]"), "tools_json", "must be an array of objects"),
        (chat(USER, tools_json="[" * 100_000), "tools_json", "nested at most 100 deep"),
        (chat(USER, tools_json="[" * 101 + "]" * 101), "tools_json", "nested at most 100 deep"),
        (chat(USER, template_kwargs_json="[]"), "template_kwargs_json", "given an array"),
        (
            chat(USER, template_kwargs_json='{"messages": []}'),
            "template_kwargs_json",
            "must not set messages",
        ),
        (
            chat(USER, Message(role="assistant", tool_calls_json="nil")),
            "messages[1].tool_calls_json",
            "messages[1].tool_calls_json must be JSON",
        ),
        (
            chat(Message(role="assistant", tool_calls_json='[{"id": "1"}]')),
            "messages[0].tool_calls_json[0].function",
            "messages[0].tool_calls_json[0].function must be an object, given null",
        ),
        (
            chat(Message(role="assistant", tool_calls_json='[{"function": {"name": ""}}]')),
            "messages[0].tool_calls_json[0].function.name",
            "must be a name, given an empty string",
        ),
        (
            chat(*[USER] * (MAX_MESSAGES + 1)),
            "messages",
            "messages must contain at most 2048 messages, given 2049",
        ),
        (
            chat(USER, tools_json='[{"x": "\\ud800"}]'),
            "messages",
            "messages and tools must not contain a lone surrogate",
        ),
    ],
)
async def test_invalid_requests_name_their_field(
    stub: Stub, request_: Encode, param: str, message: str
) -> None:
    """Each error is INVALID_ARGUMENT and contains the field and the reason."""
    with pytest.raises(MeshError) as caught:
        await call_unary(stub.Encode, request_)
    assert caught.value.kind is ErrorKind.INVALID_REQUEST
    assert caught.value.param == param
    assert message in caught.value.message


async def test_an_unknown_id_is_invalid(stub: Stub) -> None:
    """The error of Decode names the id."""
    with pytest.raises(MeshError, match="given 4000000000") as caught:
        await call_unary(stub.Decode, tokenizer_pb2.DecodeRequest(token_ids=[1, 4_000_000_000]))
    assert caught.value.param == "token_ids[1]"


async def test_a_decoded_text_fits_into_a_message(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A longer one is refused before it is sent."""
    monkeypatch.setattr(service_module, "MAX_DECODED_BYTES", 10)
    encoded = await call_unary(stub.Encode, Encode(text="A weir 🌊"))
    message = "token_ids must decode to at most 10 bytes, given 11"
    with pytest.raises(MeshError, match=message) as caught:
        await call_unary(stub.Decode, tokenizer_pb2.DecodeRequest(token_ids=encoded.token_ids))
    assert caught.value.kind is ErrorKind.CONTEXT_TOO_LONG


@pytest.mark.parametrize("omit", [False, True])
async def test_a_conversation_can_have_more_special_tokens_and_no_generation_prompt(
    stub: Stub, omit: bool
) -> None:
    """The tokenizer's own are added around those of the template."""
    plain = chat(Message(role="user", content="Hi"))
    asked = chat(Message(role="user", content="Hi"), omit_generation_prompt=omit)
    asked.add_special_tokens = True
    expected = list((await call_unary(stub.Encode, plain)).token_ids)
    ids = list((await call_unary(stub.Encode, asked)).token_ids)
    assert ids[0] == SPECIAL.index("<s>")
    request = tokenizer_pb2.DecodeRequest(token_ids=ids[1:])
    text = (await call_unary(stub.Decode, request)).text
    assert text.endswith("<|im_end|>\n" if omit else "<|im_start|>assistant\n")
    assert ids[1:] == (expected[: len(ids) - 1] if omit else expected)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (Encode(text="x" * 2_000_001), "text"),
        (chat(Message(role="user", content="x" * 1_999_998)), "chat"),
    ],
)
async def test_a_long_input_is_refused(stub: Stub, request_: Encode, field: str) -> None:
    """The status is INVALID_ARGUMENT; the message has the field, the limit and the length."""
    with pytest.raises(grpc.aio.AioRpcError) as raw:
        await stub.Encode(request_)
    with pytest.raises(MeshError) as caught:
        await call_unary(stub.Encode, request_)
    given = 2_000_001 if field == "text" else 2_000_002
    assert raw.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.kind is ErrorKind.CONTEXT_TOO_LONG
    assert caught.value.message == f"{field} must be at most 2000000 characters, given {given}"


async def test_get_tokenizer_streams_all_files(stub: Stub, service: TokenizerService) -> None:
    """The assembled files have the SHA-256 that every response contains."""
    large = {**service._files.contents, "tokenizer.json": b"abc" * FILE_PART_BYTES, "empty": b""}
    service._files = service._files._replace(contents=large, sha256=files_sha256(large))
    parts: dict[str, list[bytes]] = defaultdict(list)
    async with open_stream(stub.GetTokenizer, tokenizer_pb2.GetTokenizerRequest()) as responses:
        async for response in responses:
            assert len(response.data) <= FILE_PART_BYTES
            assert response.tokenizer_sha256 == service._files.sha256
            parts[response.file_name].append(response.data)
    contents = {name: b"".join(data) for name, data in parts.items()}
    assert files_sha256(contents) == service._files.sha256
    assert len(parts["tokenizer.json"]) == 3
    assert {"empty", "tokenizer_config.json", "generation_config.json"} < contents.keys()


async def test_known_sha256_skips_the_files(stub: Stub, service: TokenizerService) -> None:
    """A current value gives one response without a file; an outdated one gives all files."""
    for known, num_files in ((service._files.sha256, 0), ("0" * 64, len(service._files.contents))):
        request = tokenizer_pb2.GetTokenizerRequest(known_sha256=known)
        async with open_stream(stub.GetTokenizer, request) as responses:
            names = [response.file_name async for response in responses]
        assert len([name for name in names if name]) == num_files
        assert names[-1] == "" or num_files


async def test_health_answers_during_a_big_encode(
    served: Served, stub: Stub, service: TokenizerService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event loop runs while a megabyte is encoded: no check waits for an encoding's end."""
    encode_text, num_encoded, answered = service._tokenizer.encode_text, 0, threading.Event()

    def encode_until_answered(text: str, *, add_special_tokens: bool) -> list[int]:
        nonlocal num_encoded
        while True:
            token_ids = encode_text(text, add_special_tokens=add_special_tokens)
            num_encoded += 1
            if answered.is_set():
                return token_ids

    monkeypatch.setattr(service._tokenizer, "encode_text", encode_until_answered)
    health = health_pb2_grpc.HealthStub(served.channel)
    encoding = asyncio.create_task(call_unary(stub.Encode, Encode(text="a1 b2é " * 100_000)))
    try:
        await eventually(lambda: service._executor.num_pending > 0, "encoding", timeout=30)
        for _ in range(NUM_CHECKS):
            await health.Check(health_pb2.HealthCheckRequest(service=""))
    finally:
        answered.set()
    assert len((await encoding).token_ids) > 400_000
    assert num_encoded < NUM_CHECKS


async def test_metrics_count_tokens(stub: Stub) -> None:
    """tokenizer_tokens_total and tokenizer_encode_seconds count one request."""

    def value(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(name, labels) or 0

    tokens = value("tokenizer_tokens_total", operation="encode")
    count = value("tokenizer_encode_seconds_count", input="chat")
    encoded = await call_unary(stub.Encode, chat(USER))
    num_tokens = len(encoded.token_ids)
    assert value("tokenizer_tokens_total", operation="encode") == tokens + num_tokens
    assert value("tokenizer_encode_seconds_count", input="chat") == count + 1


async def test_the_span_has_counts(stub: Stub, spans: InMemorySpanExporter) -> None:
    """The RPC's span has the numbers of characters and tokens."""
    encoded = await call_unary(stub.Encode, chat(USER))
    await eventually(lambda: len(spans.get_finished_spans()) == 2, "both spans have ended")
    found = [span.attributes or {} for span in spans.get_finished_spans()]
    [attributes] = [each for each in found if "weir.tokenizer.input" in each]
    assert attributes["weir.tokenizer.input"] == "chat"
    assert attributes["weir.tokenizer.num_characters"] == 6
    assert attributes["weir.tokenizer.num_tokens"] == len(encoded.token_ids)


async def test_the_access_line_has_counts(stub: Stub, caplog: pytest.LogCaptureFixture) -> None:
    """Counts and the kind of input are logged, the text is not."""
    caplog.set_level("INFO", "mesh.rpc")
    encoded = await call_unary(stub.Encode, Encode(text="secret words"))
    await eventually(lambda: bool(caplog.records), "access line")
    [record] = caplog.records
    assert vars(record)["num_tokens"] == len(encoded.token_ids)
    assert vars(record)["num_characters"] == 12
    assert vars(record)["input"] == "text"
    assert "secret" not in str(vars(record))


async def test_the_executors_queue_is_bounded() -> None:
    """Further calls are refused with OVERLOADED; cancellation removes a call from the queue."""
    executor = BoundedExecutor(num_workers=1, max_waiting=1)
    release = threading.Event()
    running = asyncio.create_task(executor.run(release.wait))
    waiting = asyncio.create_task(executor.run(lambda: pytest.fail("was cancelled")))
    await eventually(lambda: executor.num_pending == 2, "both pending")
    metrics.export_pending(lambda: executor.num_pending)
    assert REGISTRY.get_sample_value("tokenizer_num_requests_running") == 2
    with pytest.raises(MeshError, match="at most 1 calls may wait") as caught:
        await executor.run(lambda: None)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert executor.num_pending == 1
    release.set()
    assert await running is True
    await eventually(lambda: executor.num_pending == 0, "idle")
    assert caught.value.kind is ErrorKind.OVERLOADED
    assert caught.value.retry_after == 1
    executor.close()


async def test_a_short_text_needs_no_thread(stub: Stub, service: TokenizerService) -> None:
    """It is encoded at once while all threads are busy; a longer text waits."""
    release = threading.Event()
    busy = [
        asyncio.create_task(service._executor.run(release.wait))
        for _ in range(service._settings.num_workers)
    ]
    short = await call_unary(stub.Encode, Encode(text="Hi " * (SHORT_CHARACTERS // 3)))
    longer = asyncio.create_task(call_unary(stub.Encode, Encode(text="x" * (SHORT_CHARACTERS + 1))))
    await eventually(lambda: service._executor.num_pending > len(busy), "waiting")
    assert len(short.token_ids) > 0
    assert not longer.done()
    release.set()
    await asyncio.gather(longer, *busy)


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (Encode(text="x" * 40_000), "text"),
        (chat(Message(role="user", content="x" * 40_000)), "chat"),
    ],
)
async def test_a_prompt_that_cannot_fit_is_refused_before_it_is_encoded(
    stub: Stub,
    service: TokenizerService,
    monkeypatch: pytest.MonkeyPatch,
    request_: Encode,
    param: str,
) -> None:
    """The longest token has 19 characters, so 40,000 of them have more than 2,000 tokens."""
    monkeypatch.setattr(service, "_executor", None)  # nothing may reach a thread
    request_.max_tokens = 500
    with pytest.raises(MeshError, match="must have at most 500 tokens, given 4") as caught:
        await call_unary(stub.Encode, request_)
    assert caught.value.kind is ErrorKind.CONTEXT_TOO_LONG
    assert caught.value.param == param


async def test_a_rendered_prompt_that_cannot_fit_is_not_encoded(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The template makes the prompt longer than its messages."""
    async with service_of(make_model("{{ messages[0].content * 100 }}")) as service:
        monkeypatch.setattr(service._tokenizer, "encode_segments", pytest.fail)
        request = chat(Message(role="user", content="x" * 1000))
        request.max_tokens = 1000
        async with serve(*service.servicers) as served:
            stub: Stub = tokenizer_pb2_grpc.TokenizerServiceStub(served.channel)
            with pytest.raises(MeshError, match="100000 characters") as caught:
                await call_unary(stub.Encode, request)
    assert caught.value.kind is ErrorKind.CONTEXT_TOO_LONG


ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
"""Writes nothing, so that no check of the output can end it."""

SELECTED = (
    "{% if messages[0].content == 'loop' %}"
    + ENDLESS
    + "{% elif messages[0].content == 'memory' %}{{ ('a' * 1000000000)|length }}"
    + "{% elif messages[0].content == 'one step' %}{% set n = 10 %}{{ 7 ** (n ** 9) }}"
    + "{% else %}{{ messages[0].content }}{% endif %}"
)
"""A template that misbehaves for some messages."""


def user(content: str) -> Encode:
    return chat(Message(role="user", content=content))


async def test_a_template_that_never_ends_hurts_no_other_request(make_model: MakeModel) -> None:
    """Loops, one endless operation and too much memory are refused; the workers are replaced."""
    folder = make_model(SELECTED)
    async with (
        service_of(folder, template_timeout_seconds=0.2, template_memory_mib=64) as service,
        serve(*service.servicers) as served,
    ):
        stub: Stub = tokenizer_pb2_grpc.TokenizerServiceStub(served.channel)
        for content, message in (
            ("loop", "messages must render within 0.2 s of CPU time, took longer"),
            ("one step", "messages must render within 0.2 s of CPU time, took longer"),
            ("memory", "messages must render within 64 MiB of memory, given more"),
        ):
            bad = asyncio.create_task(call_unary(stub.Encode, user(content)))
            good = await call_unary(stub.Encode, user("Hi"))
            assert len(good.token_ids) > 0
            with pytest.raises(MeshError) as caught:
                await bad
            assert caught.value.kind is ErrorKind.INVALID_REQUEST
            assert caught.value.message == message
        assert service._executor.num_pending == 0


async def test_cancellation_and_drain_end_a_template(make_model: MakeModel) -> None:
    """Both kill the worker long before the limit of its CPU time."""
    async with (
        service_of(make_model(SELECTED), template_timeout_seconds=1000) as service,
        serve(*service.servicers) as served,
    ):
        stub: Stub = tokenizer_pb2_grpc.TokenizerServiceStub(served.channel)
        with pytest.raises(MeshError) as caught:
            await call_unary(stub.Encode, user("loop"), timeout=0.1)
        assert caught.value.kind is ErrorKind.DEADLINE
        await eventually(lambda: service._executor.num_pending == 0, "thread free")
        running = asyncio.create_task(call_unary(stub.Encode, user("loop")))
        await eventually(lambda: service._executor.num_pending == 1, "rendering")
        await served.server.drain(timeout=0)
        with pytest.raises(MeshError):
            await running
        await eventually(lambda: service._executor.num_pending == 0, "thread free")


Texts = tokenizer_pb2.EncodeTextsRequest


async def test_texts_are_encoded_in_one_call(stub: Stub, service: TokenizerService) -> None:
    """As Encode encodes each; short ones and long ones."""
    for texts in (["A weir", "dam"], ["A weir " * 200, "", "dam"]):
        response = await call_unary(stub.EncodeTexts, Texts(texts=texts))
        expected = [
            await call_unary(stub.Encode, Encode(text=text, add_special_tokens=True))
            for text in texts
        ]
        assert [list(each.token_ids) for each in response.encoded] == [
            list(each.token_ids) for each in expected
        ]
        assert response.tokenizer_sha256 == service._files.sha256


@pytest.mark.parametrize(
    ("request_", "kind", "param", "words"),
    [
        (Texts(), ErrorKind.INVALID_REQUEST, "texts", "1 to 64 items, given 0"),
        (Texts(texts=["a"] * 65), ErrorKind.INVALID_REQUEST, "texts", "given 65"),
        (
            Texts(texts=["a", "b"], second_texts=["c"]),
            ErrorKind.INVALID_REQUEST,
            "second_texts",
            "as many items as texts (2) or none, given 1",
        ),
        (
            Texts(texts=["a"], prompt_name="query"),
            ErrorKind.INVALID_REQUEST,
            "prompt_name",
            "must be one of the model's prompts (none), given 'query'",
        ),
        (
            Texts(texts=["a", "b " * 4000], max_tokens=8),
            ErrorKind.CONTEXT_TOO_LONG,
            "texts[1]",
            "at most 8 tokens",
        ),
    ],
)
async def test_bad_texts_are_refused(
    stub: Stub, request_: Texts, kind: ErrorKind, param: str, words: str
) -> None:
    """The error names the text."""
    with pytest.raises(MeshError) as caught:
        await call_unary(stub.EncodeTexts, request_)
    assert (caught.value.kind, caught.value.param) == (kind, param)
    assert words in caught.value.message


async def test_long_texts_are_cut_on_request(stub: Stub, service: TokenizerService) -> None:
    """To `max_tokens`, special tokens included; the service's own limit stays."""
    most = service._settings.max_input_characters
    too_long = Texts(texts=["a", "b" * (most + 1)], max_tokens=5, truncate=True)
    with pytest.raises(MeshError, match=rf"texts\[1\] must be at most {most} characters"):
        await call_unary(stub.EncodeTexts, too_long)
    request = Texts(texts=["a", "dam " * 400], max_tokens=5, truncate=True)
    short, long = (await call_unary(stub.EncodeTexts, request)).encoded
    assert len(short.token_ids) == 2
    assert len(long.token_ids) == 5
    assert long.token_ids[0] == SPECIAL.index("<s>")
