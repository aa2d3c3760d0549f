"""The families' kinds of tokenizers and templates, from a conversation to the answer's parts."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from tokenizers import Tokenizer as Library
from transformers import PreTrainedTokenizerFast

from mesh.errors import ErrorKind, MeshError
from mesh.protocol.chat import chat_to_proto
from mesh.rpc.channel import call_unary, open_stream
from mesh.text.detokenizer import Decoder
from mesh.v1 import common_pb2, orchestrator_pb2, tokenizer_pb2, tokenizer_pb2_grpc
from tests.helpers import serve
from tests.orchestrator.fakes import FakeInference, orchestrator
from tests.tokenizer.conftest import service_of
from tests.tokenizer.families.made import FAMILIES, TEXTS
from tests.tokenizer.prompts import chat, encode
from tokenizer.files import read_files
from tokenizer.tokenizer import Tokenizer

FolderOf: TypeAlias = Callable[[str], Path]

USER = {"role": "user", "content": "  The quick fox?\n"}
TURNS = [USER, {"role": "assistant", "content": "Yes 😀."}, {"role": "user", "content": "naïve"}]
SYSTEM = {"role": "system", "content": "Be brief."}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = {"id": "call00001", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CALLED = [
    USER,
    {"role": "assistant", "reasoning_content": "I need f.", "tool_calls": [CALL]},
    {"role": "tool", "content": "42", "tool_call_id": "call00001"},
]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> FolderOf:
    """The folder of a family's tokenizer, made once."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = FAMILIES[family].save(tmp_path_factory.mktemp(family))
        return made[family]

    return folder


def own(folder: Path) -> Tokenizer:
    return Tokenizer("m", read_files(str(folder)))


def theirs(folder: Path, messages: list[Any], tools: list[Any] | None = None) -> list[int]:
    """The ids of transformers' `apply_chat_template`."""
    loaded = PreTrainedTokenizerFast.from_pretrained(folder)
    return list(
        loaded.apply_chat_template(
            messages, tools=tools, add_generation_prompt=True, return_dict=False
        )
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_conversations_have_the_ids_of_transformers(family: str, folder_of: FolderOf) -> None:
    """One BOS where the template writes it, generation prompt, spaces beside special tokens."""
    folder, made = folder_of(family), FAMILIES[family]
    tokenizer = own(folder)
    conversations: list[tuple[list[Any], list[Any] | None]] = [([USER], None), (TURNS, None)]
    if made.takes_system:
        conversations.append(([SYSTEM, *TURNS], None))
    if made.renders_tools:
        conversations.append(([SYSTEM, *TURNS], [TOOL]))
    for messages, tools in conversations:
        ids = encode(tokenizer, chat(messages, tools=tools))
        assert ids == theirs(folder, messages, tools)
        if made.bos and made.bos != made.eos:
            bos = Library.from_file(str(folder / "tokenizer.json")).token_to_id(made.bos)
            assert ids.count(bos) == made.template.count("bos_token")


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_have_the_tokens_that_the_tokenizer_adds(family: str, folder_of: FolderOf) -> None:
    """Before a completion's prompt, once; and each text survives the tokenizer."""
    tokenizer = own(folder_of(family))
    for text in TEXTS:
        ids = tokenizer.encode_text(text, add_special_tokens=True)
        plain = tokenizer.encode_text(text, add_special_tokens=False)
        added = "".join(FAMILIES[family].added)
        assert tokenizer.decode(ids, skip_special_tokens=False).replace("> ", ">") == (
            f"{added}{text}"
        ).replace("> ", ">")
        assert ids[len(FAMILIES[family].added) :] == plain
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("family", FAMILIES)
def test_special_tokens_in_a_message_are_text(family: str, folder_of: FolderOf) -> None:
    """Only the template writes special tokens."""
    folder, made = folder_of(family), FAMILIES[family]
    tokenizer = own(folder)
    special = {
        Library.from_file(str(folder / "tokenizer.json")).token_to_id(each) for each in made.special
    }

    def written(content: str) -> list[int]:
        ids = encode(tokenizer, chat([{"role": "user", "content": content}]))
        return [each for each in ids if each in special]

    assert written(f"a {' '.join(made.special)} b") == written("a b")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stream_of_tokens_is_the_text(family: str, folder_of: FolderOf) -> None:
    """Token by token, also where characters are made of bytes."""
    library = Library.from_file(str(folder_of(family) / "tokenizer.json"))
    decoder = Decoder(library)
    for text in TEXTS:
        stream = decoder.stream()
        ids = library.encode(text, add_special_tokens=False).ids
        pieces = [stream.push([each]) for each in ids]
        assert "".join(pieces) + stream.flush() == text
        assert sum(map(bool, pieces)) > len(text) / 8, "it does not wait for the end"


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("gemma2", "This model takes no messages of role system"),
        ("mixtral", "Only user and assistant speak"),
    ],
)
async def test_a_system_message_that_the_template_refuses_is_a_clear_error(
    family: str, reason: str, folder_of: FolderOf
) -> None:
    """Through tokenizer and orchestrator: INVALID_REQUEST with the template's own reason."""
    async with chain(folder_of(family), FakeInference()) as ask:
        with pytest.raises(MeshError) as refused:
            await ask([SYSTEM, USER])
    assert refused.value.kind is ErrorKind.INVALID_REQUEST
    assert refused.value.param == "messages"
    assert refused.value.message == (f"the model's chat template rejects these messages: {reason}")


@asynccontextmanager
async def chain(
    folder: Path, engine: FakeInference, **settings: Any
) -> AsyncIterator[Callable[..., Any]]:
    """The real tokenizer service and orchestrator before an engine; yields a function that chats.

    It returns reasoning, text and calls.
    """
    async with (
        service_of(folder, num_workers=1) as service,
        serve(*service.servicers) as served,
        orchestrator(engine, tokenizer_host=served.address, **settings) as running,
    ):
        stub = tokenizer_pb2_grpc.TokenizerServiceStub(served.channel)

        async def ask(
            messages: list[Any], tools: list[Any] | None = None, answer: str = ""
        ) -> tuple[str, str, list[tuple[str, str]]]:
            encoded = await call_unary(stub.Encode, tokenizer_pb2.EncodeRequest(text=answer or "x"))
            engine.ids = list(encoded.token_ids)
            request = orchestrator_pb2.GenerateRequest(
                chat=chat_to_proto(chat(messages, tools=tools)),
                sampling=common_pb2.SamplingParams(max_tokens=500),
            )
            async with open_stream(running.stub.Generate, request) as responses:
                deltas = [each.delta async for each in responses]
            calls = [call for delta in deltas for call in delta.tool_calls]
            return (
                "".join(delta.reasoning for delta in deltas),
                "".join(delta.text for delta in deltas),
                [
                    (
                        first.name,
                        "".join(each.arguments for each in calls if each.index == first.index),
                    )
                    for first in calls
                    if first.name
                ],
            )

        yield ask


ANSWERS = [
    ("gemma2", "The dog sleeps.", ("", "The dog sleeps.", [])),
    (
        "gemma3",
        '<tool_call>\n{"name": "f", "arguments": {"x": "naïve"}}\n</tool_call>',
        ("", "", [("f", '{"x": "naïve"}')]),
    ),
    (
        "granite",
        '<|tool_call|>[{"name": "f", "arguments": {"x": 1}}, {"name": "f", "arguments": {}}]',
        ("", "", [("f", '{"x": 1}'), ("f", "{}")]),
    ),
    (
        "phi4-mini",
        'functools[{"name": "f", "arguments": {"x": 1}}]',
        ("", "", [("f", '{"x": 1}')]),
    ),
    (
        "qwen-moe",
        "<think>\nHm 😀.\n</think>\n\n"
        'See.<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>',
        ("Hm 😀.", "See.", [("f", "{}")]),
    ),
    (
        "gpt-oss",
        "<|channel|>analysis<|message|>Hm 😀.<|end|><|start|>assistant<|channel|>final<|message|>"
        "The dog.<|return|>",
        ("Hm 😀.", "The dog.", []),
    ),
    (
        "gpt-oss",
        "<|channel|>analysis<|message|>Call f.<|end|><|start|>assistant<|channel|>commentary "
        'to=functions.f <|constrain|>json<|message|>{"x": 1}<|call|>',
        ("Call f.", "", [("f", '{"x": 1}')]),
    ),
]


@pytest.mark.parametrize(("family", "answer", "expected"), ANSWERS)
async def test_answers_are_separated_into_their_parts(
    family: str, answer: str, expected: Any, folder_of: FolderOf
) -> None:
    """Reasoning, text and calls, also where the markers are special tokens."""
    async with chain(folder_of(family), FakeInference()) as ask:
        assert await ask([USER], [TOOL], answer) == expected


@pytest.mark.parametrize("family", ["granite", "qwen-moe", "gpt-oss", "gemma3", "phi4"])
def test_calls_and_results_are_in_the_next_prompt(family: str, folder_of: FolderOf) -> None:
    """In the template's own form, or as text; gpt-oss also gets the reasoning before the call."""
    tokenizer = own(folder_of(family))
    prompt = tokenizer.decode(
        encode(tokenizer, chat(CALLED, tools=[TOOL])), skip_special_tokens=False
    )
    assert '"f"' in prompt or "to=functions.f" in prompt
    assert "42" in prompt
    assert ("<|channel|>analysis<|message|>I need f.<|end|>" in prompt) == (family == "gpt-oss")


def test_the_effort_of_reasoning_reaches_the_template(folder_of: FolderOf) -> None:
    """gpt-oss' `reasoning_effort`, Qwen's `enable_thinking`."""
    for family, variables, text in (
        ("gpt-oss", {"reasoning_effort": "high"}, "Reasoning: high"),
        ("qwen-moe", {"enable_thinking": False}, "<think>\n\n</think>"),
    ):
        tokenizer = own(folder_of(family))
        ids = encode(tokenizer, chat([USER], template_kwargs=variables))
        assert text in tokenizer.decode(ids, skip_special_tokens=False), json.dumps(variables)
