"""The tokenizer service: encodes there, and hands out its files so that decoding happens here."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import grpc.aio
from tokenizers import Tokenizer

from mesh.errors import ErrorKind, MeshError
from mesh.protocol.chat import ChatPrompt, chat_to_proto
from mesh.rpc.channel import call_unary, open_stream
from mesh.v1 import tokenizer_pb2, tokenizer_pb2_grpc
from orchestrator.text.detokenizer import Decoder
from orchestrator.text.tools.tool_format import AnswerFormat, answer_format

SERVICE = "mesh.v1.TokenizerService"


class Encoded(NamedTuple):
    """Token ids, and what turns their like back into text."""

    token_ids: Sequence[int]
    decoder: Decoder
    source: ChatPrompt | str | None = None
    """What they encode; None: they came as ids."""


class LocalTokenizer(NamedTuple):
    """The service's tokenizer in this process."""

    tokenizer: Tokenizer
    decoder: Decoder
    format: AnswerFormat = AnswerFormat()
    """What the model's chat template says of its answers."""


class TokenizerClient:
    """Encodes over the channel and keeps the tokenizer that decodes what comes back."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        """`channel` stays its owner's."""
        self._stub: tokenizer_pb2_grpc.TokenizerServiceAsyncStub
        self._stub = tokenizer_pb2_grpc.TokenizerServiceStub(channel)
        self._sha256 = ""
        self._tokenizer: LocalTokenizer | None = None
        self._fetching = asyncio.Lock()

    async def encode_chat(self, prompt: ChatPrompt) -> Encoded:
        """The ids of a conversation. Raises MeshError, also for what the template refuses."""
        return await self._encode(tokenizer_pb2.EncodeRequest(chat=chat_to_proto(prompt)), prompt)

    async def encode_text(self, text: str) -> Encoded:
        """The ids of raw text, with the tokenizer's own special tokens around it."""
        request = tokenizer_pb2.EncodeRequest(text=text, add_special_tokens=True)
        return await self._encode(request, text)

    async def current(self) -> LocalTokenizer:
        """The tokenizer that the service serves, fetched once."""
        return self._tokenizer or await self._fetch("")

    async def _encode(
        self, request: tokenizer_pb2.EncodeRequest, source: ChatPrompt | str
    ) -> Encoded:
        response = await call_unary(self._stub.Encode, request)
        tokenizer = self._tokenizer
        if tokenizer is None or response.tokenizer_sha256 != self._sha256:
            tokenizer = await self._fetch(response.tokenizer_sha256)
        return Encoded(response.token_ids, tokenizer.decoder, source)

    async def _fetch(self, wanted: str) -> LocalTokenizer:
        """The tokenizer with this SHA-256, or any for "". One fetch at a time."""
        async with self._fetching:
            if self._tokenizer is not None and wanted in ("", self._sha256):
                return self._tokenizer
            files: dict[str, bytearray] = {}
            sha256 = ""
            request = tokenizer_pb2.GetTokenizerRequest()
            async with open_stream(self._stub.GetTokenizer, request) as pieces:
                async for piece in pieces:
                    sha256 = piece.tokenizer_sha256
                    files.setdefault(piece.file_name, bytearray()).extend(piece.data)
            if wanted not in ("", sha256):
                # The tokenizer changed between the two calls; the caller's next try meets one.
                raise MeshError(ErrorKind.UNAVAILABLE, "the tokenizer is being replaced")
            self._tokenizer = await asyncio.to_thread(_load, files, sha256)
            self._sha256 = sha256
            return self._tokenizer


def files_sha256(files: Mapping[str, bytes | bytearray]) -> str:
    """SHA-256, hexadecimal: of each file, by name: name, NUL, length in decimal, NUL, bytes."""
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name}\0{len(files[name])}\0".encode())
        digest.update(files[name])
    return digest.hexdigest()


def _load(files: dict[str, bytearray], sha256: str) -> LocalTokenizer:
    if files_sha256(files) != sha256:
        # Pieces of two tokenizers, or of a stream that was cut.
        raise MeshError(ErrorKind.UNAVAILABLE, "the tokenizer's files are not whole")
    content = files.get("tokenizer.json")
    if content is None:
        raise MeshError(ErrorKind.INTERNAL, "the tokenizer service sent no tokenizer.json")
    # Cutting or padding prompts is not the tokenizer's business here.
    settings = json.loads(bytes(content))
    settings["truncation"] = settings["padding"] = None
    tokenizer = Tokenizer.from_str(json.dumps(settings))
    return LocalTokenizer(tokenizer, Decoder(tokenizer), answer_format(_templates(files)))


def _templates(files: Mapping[str, bytes | bytearray]) -> Iterator[str]:
    """All chat templates: in files of their own, or in the tokenizer's settings."""
    for name, content in files.items():
        if name.endswith(".jinja"):
            yield bytes(content).decode(errors="replace")
        elif name == "tokenizer_config.json":
            template = json.loads(bytes(content)).get("chat_template")
            # A string, or a list of names and templates: either way all that counts is in it.
            yield template if isinstance(template, str) else json.dumps(template)
