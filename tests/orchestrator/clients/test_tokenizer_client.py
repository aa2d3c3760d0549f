"""Download of the tokenizer's files, once and after each change."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from mesh.errors import ErrorKind, MeshError
from mesh.rpc.server import Servicer
from mesh.v1 import tokenizer_pb2, tokenizer_pb2_grpc
from orchestrator.clients.tokenizer import SHORT_CHARACTERS, TokenizerClient
from tests.helpers import serve
from tests.orchestrator.tokenizers_made import byte_fallback, byte_level

pytestmark = pytest.mark.timeout(10)


class Files(tokenizer_pb2_grpc.TokenizerServiceServicer):
    """Serves a tokenizer.json, and reports the SHA-256 of the tokenizer that encodes."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.sha256 = sha256(content)
        self.encodes_with = self.sha256
        self.num_fetches = 0

    async def Encode(self, request: Any, context: Any) -> tokenizer_pb2.EncodeResponse:
        return tokenizer_pb2.EncodeResponse(token_ids=[1, 2], tokenizer_sha256=self.encodes_with)

    async def GetTokenizer(
        self, request: Any, context: Any
    ) -> AsyncIterator[tokenizer_pb2.GetTokenizerResponse]:
        self.num_fetches += 1
        for begin in range(0, len(self.content), 1000):
            yield tokenizer_pb2.GetTokenizerResponse(
                tokenizer_sha256=self.sha256,
                file_name="tokenizer.json",
                data=self.content[begin : begin + 1000],
            )


def sha256(content: bytes) -> str:
    """SHA-256 of a tokenizer.json, as the service computes it."""
    named = b"tokenizer.json\0" + str(len(content)).encode() + b"\0" + content
    return hashlib.sha256(named).hexdigest()


@asynccontextmanager
async def client(files: Files) -> AsyncIterator[TokenizerClient]:
    """A client of a service with these files."""
    register = tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server
    async with serve(Servicer("mesh.v1.TokenizerService", register, files)) as served:
        yield TokenizerClient(served.channel)


BYTE_LEVEL = byte_level().to_str().encode()


async def test_the_files_are_downloaded_once() -> None:
    """Concurrent first requests share one download."""
    files = Files(BYTE_LEVEL)
    async with client(files) as tokenizer:
        encoded = await asyncio.gather(*(tokenizer.encode_text("x") for _ in range(20)))
        await tokenizer.current()
    assert files.num_fetches == 1
    assert len({id(each.decoder) for each in encoded}) == 1


async def test_a_changed_tokenizer_is_downloaded() -> None:
    """Ids are decoded by the tokenizer that encoded the prompt."""
    files = Files(BYTE_LEVEL)
    async with client(files) as tokenizer:
        old = (await tokenizer.encode_text("x")).decoder
        files.content = byte_fallback().to_str().encode()
        files.sha256 = files.encodes_with = sha256(files.content)
        new = (await tokenizer.encode_text("x")).decoder
    assert files.num_fetches == 2
    assert new is not old
    assert new.token_text(byte_fallback().token_to_id("T")) == "T"


async def test_a_tokenizer_that_is_being_replaced_is_unavailable() -> None:
    """The next request succeeds."""
    files = Files(BYTE_LEVEL)
    files.encodes_with = "new"
    async with client(files) as tokenizer:
        with pytest.raises(MeshError) as caught:
            await tokenizer.encode_text("x")
        assert caught.value.kind is ErrorKind.UNAVAILABLE
        files.encodes_with = files.sha256
        assert list((await tokenizer.encode_text("x")).token_ids) == [1, 2]


async def test_incomplete_files_are_not_used() -> None:
    """They could decode to wrong text."""
    files = Files(BYTE_LEVEL)
    files.content = BYTE_LEVEL[:-1000]
    async with client(files) as tokenizer:
        with pytest.raises(MeshError) as caught:
            await tokenizer.encode_text("x")
        assert caught.value.kind is ErrorKind.UNAVAILABLE
        files.content = BYTE_LEVEL
        await tokenizer.encode_text("x")


async def test_truncation_and_padding_are_disabled() -> None:
    """The limits in tokenizer.json are ignored, so long texts are counted in full."""
    settings = json.loads(BYTE_LEVEL)
    settings["truncation"] = {
        "direction": "Right",
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    async with client(Files(json.dumps(settings).encode())) as tokenizer:
        local = (await tokenizer.current()).tokenizer
    assert len(local.encode("a b c d e f g h i j").ids) > 4


async def test_a_short_prompt_is_encoded_without_a_call() -> None:
    """With the special tokens and without the file's truncation, as the service encodes it."""
    made = Tokenizer.from_str(byte_level().to_str())
    made.enable_truncation(2)
    made.post_processor = TemplateProcessing(single="T $A", special_tokens=[("T", 1)])
    files = Files(made.to_str().encode())
    made.no_truncation()
    async with client(files) as tokenizer:
        first = await tokenizer.encode_prompt("a river")  # no files yet
        short = await tokenizer.encode_prompt("a river")
        long = await tokenizer.encode_prompt("x" * (SHORT_CHARACTERS + 1))
    assert list(first.token_ids) == list(long.token_ids) == [1, 2]  # the service's
    assert list(short.token_ids) == made.encode("a river").ids
    assert len(short.token_ids) > 2
    assert short.token_ids[0] == 1
    assert (short.source, short.vocabulary_sha256) == ("a river", long.vocabulary_sha256)
