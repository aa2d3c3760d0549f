"""The gRPC service: converts between protobuf messages and `Tokenizer`."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

import grpc.aio

from mesh.context import annotate
from mesh.errors import ErrorKind, MeshError, invalid
from mesh.observability import semconv
from mesh.observability.metrics import exemplar, labelled
from mesh.observability.recording.current import current_span
from mesh.process.lifecycle import SetReady
from mesh.protocol.chat import MAX_MESSAGES, ToolPrompt, tool_prompt_to_proto
from mesh.protocol.model_kind import input_use_from_proto
from mesh.rpc.server import Servicer
from mesh.v1 import common_pb2, tokenizer_pb2, tokenizer_pb2_grpc
from tokenizer.executor import BoundedExecutor
from tokenizer.files import TokenizerFiles
from tokenizer.metrics import ENCODE_SECONDS, TOKENS
from tokenizer.rendering.workers import RenderWorkers
from tokenizer.settings import TokenizerSettings
from tokenizer.tokenizer import SHORT_CHARACTERS, Tokenizer

if TYPE_CHECKING:  # generic in the stubs only
    Context = grpc.aio.ServicerContext[Any, Any]


FILE_PART_BYTES = 1024 * 1024
"""Maximum bytes of a file in one GetTokenizer response."""

MAX_TEXTS = 64
"""Maximum texts of one EncodeTexts request, as the proto file states."""

MAX_DECODED_BYTES = 8 * 1024 * 1024
"""Maximum bytes of the text of a Decode response: half of what a message may have."""

UNRENDERED_SLACK = 4
"""A conversation is refused before it is rendered if it has this many times the tokens that fit:
a template may omit a part of it, such as earlier reasoning."""


class TokenizerService(tokenizer_pb2_grpc.TokenizerServiceServicer):
    """Serves one tokenizer; runs all work except on short texts in `executor`."""

    def __init__(
        self,
        settings: TokenizerSettings,
        files: TokenizerFiles,
        tokenizer: Tokenizer,
        workers: RenderWorkers,
        executor: BoundedExecutor,
    ) -> None:
        """The caller owns `workers` and `executor` and closes them after the service."""
        self._settings = settings
        self._files = files
        self._tokenizer = tokenizer
        self._workers = workers
        self._executor = executor

    def called_channels(self) -> Sequence[grpc.aio.Channel]:
        """None: this service calls no other."""
        return ()

    @property
    def servicers(self) -> list[Servicer]:
        """The gRPC servicers for `mesh.process.lifecycle`."""
        descriptor = tokenizer_pb2.DESCRIPTOR.services_by_name["TokenizerService"]
        register = tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server
        return [Servicer(descriptor.full_name, register, self)]

    async def watch_ready(self, set_ready: SetReady) -> None:
        """Reports ready at once, because the constructor requires a loaded tokenizer."""
        await set_ready(True)
        await asyncio.Event().wait()

    async def Encode(
        self, request: tokenizer_pb2.EncodeRequest, context: Context
    ) -> tokenizer_pb2.EncodeResponse:
        """Encodes a text, or renders and encodes a conversation.

        Raises MeshError: INVALID_REQUEST, CONTEXT_TOO_LONG, or OVERLOADED if the queue is full.
        """
        started = time.monotonic()
        kind = request.WhichOneof("input")
        if kind is None:
            raise invalid("input", "input must be text or chat, given neither")
        if kind == "chat":
            _check_num_messages(request.chat)
        num_characters = len(request.text) if kind == "text" else _num_characters(request.chat)
        _record(input=kind, num_characters=num_characters)
        self._check_length(kind, num_characters)
        slack = UNRENDERED_SLACK if kind == "chat" else 1
        self._tokenizer.check_fits(num_characters, request.max_tokens, kind, slack=slack)
        if kind == "text":
            response = await self._encode_text(request)
        else:
            response = await self._encode_chat(request)
        num_tokens = len(response.token_ids)
        _record(num_tokens=num_tokens)
        labelled(TOKENS, "encode").inc(num_tokens)
        labelled(ENCODE_SECONDS, kind).observe(time.monotonic() - started, exemplar())
        return response

    async def EncodeTexts(
        self, request: tokenizer_pb2.EncodeTextsRequest, context: Context
    ) -> tokenizer_pb2.EncodeTextsResponse:
        """Encodes texts or pairs of texts.

        Raises MeshError: INVALID_REQUEST, CONTEXT_TOO_LONG, or OVERLOADED if the queue is full.
        """
        started = time.monotonic()
        texts, seconds = request.texts, request.second_texts
        _check_num_texts(request)
        prompt = self._tokenizer.prompts.choose(
            request.prompt_name, input_use_from_proto(request.input_type)
        )
        lengths = [len(prompt) + len(text) for text in texts]
        for number, second in enumerate(seconds):
            lengths[number] += len(second)
        _record(input="texts", num_texts=len(texts), num_characters=sum(lengths))
        for number, length in enumerate(lengths):
            self._check_length(f"texts[{number}]", length)
            if not request.truncate:
                self._tokenizer.check_fits(length, request.max_tokens, f"texts[{number}]")

        def encode() -> tokenizer_pb2.EncodeTextsResponse:
            limit = request.max_tokens if request.truncate else 0
            prompted = [prompt + text for text in texts] if prompt else texts
            encoded = self._tokenizer.texts.encode(prompted, seconds, limit)
            return tokenizer_pb2.EncodeTextsResponse(
                encoded=[tokenizer_pb2.EncodedText(**each._asdict()) for each in encoded],
                tokenizer_sha256=self._tokenizer.sha256,
            )

        is_short = sum(lengths) <= SHORT_CHARACTERS
        response = encode() if is_short else await self._executor.run(encode)
        num_tokens = sum(len(each.token_ids) for each in response.encoded)
        _record(num_tokens=num_tokens)
        labelled(TOKENS, "encode").inc(num_tokens)
        labelled(ENCODE_SECONDS, "texts").observe(time.monotonic() - started, exemplar())
        return response

    async def Decode(
        self, request: tokenizer_pb2.DecodeRequest, context: Context
    ) -> tokenizer_pb2.DecodeResponse:
        """Decodes ids to text; `skip_special_tokens` omits special tokens.

        Raises MeshError: INVALID_REQUEST for an id outside the vocabulary, CONTEXT_TOO_LONG, or
        OVERLOADED if the queue is full.
        """
        num_tokens = len(request.token_ids)
        _record(num_tokens=num_tokens)
        limit = self._settings.max_input_characters
        if num_tokens > limit:
            raise MeshError(
                ErrorKind.CONTEXT_TOO_LONG,
                f"token_ids must be at most {limit} ids, given {num_tokens}",
                param="token_ids",
            )

        def decode() -> tokenizer_pb2.DecodeResponse:
            text = self._tokenizer.decode(
                list(request.token_ids), skip_special_tokens=request.skip_special_tokens
            )
            _check_decoded(text)
            return tokenizer_pb2.DecodeResponse(text=text, tokenizer_sha256=self._tokenizer.sha256)

        response = await self._executor.run(decode)
        labelled(TOKENS, "decode").inc(num_tokens)
        return response

    async def GetTokenizer(
        self, request: tokenizer_pb2.GetTokenizerRequest, context: Context
    ) -> AsyncIterator[tokenizer_pb2.GetTokenizerResponse]:
        """Streams the files in parts, sorted by name; an empty file has one empty part.

        Sends one response without a file if the client's `known_sha256` is current.
        """
        sha256 = self._files.sha256
        if request.known_sha256 == sha256:
            _record(num_files=0)
            yield tokenizer_pb2.GetTokenizerResponse(tokenizer_sha256=sha256)
            return
        _record(num_files=len(self._files.contents))
        for name, content in self._files.contents.items():
            for start in range(0, max(1, len(content)), FILE_PART_BYTES):
                yield tokenizer_pb2.GetTokenizerResponse(
                    tokenizer_sha256=sha256,
                    file_name=name,
                    data=content[start : start + FILE_PART_BYTES],
                )

    def _check_length(self, field: str, num_characters: int) -> None:
        limit = self._settings.max_input_characters
        if num_characters > limit:
            raise MeshError(
                ErrorKind.CONTEXT_TOO_LONG,
                f"{field} must be at most {limit} characters, given {num_characters}",
                param=field,
            )

    async def _encode_text(
        self, request: tokenizer_pb2.EncodeRequest
    ) -> tokenizer_pb2.EncodeResponse:
        def encode() -> tokenizer_pb2.EncodeResponse:
            return self._response(
                self._tokenizer.encode_text(
                    request.text, add_special_tokens=request.add_special_tokens
                )
            )

        # On the event loop, because encoding a short text takes less time than a thread switch.
        if len(request.text) <= SHORT_CHARACTERS:
            return encode()
        return await self._executor.run(encode)

    async def _encode_chat(
        self, request: tokenizer_pb2.EncodeRequest
    ) -> tokenizer_pb2.EncodeResponse:
        cancelled = threading.Event()

        def encode() -> tokenizer_pb2.EncodeResponse:
            chat = request.chat.SerializeToString()
            prompt = self._workers.render(chat, cancelled.is_set)
            num_characters = sum(len(segment.text) for segment in prompt.segments)
            self._tokenizer.check_fits(num_characters, request.max_tokens, "chat")
            token_ids = self._tokenizer.encode_segments(prompt.segments)
            if request.add_special_tokens:
                token_ids = self._tokenizer.with_special_tokens(token_ids)
            return self._response(token_ids, prompt.tool_prompt)

        # Always in a thread, because a template may run for any time.
        try:
            return await self._executor.run(encode)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    def _response(
        self, token_ids: list[int], tool_prompt: ToolPrompt = ToolPrompt.NONE
    ) -> tokenizer_pb2.EncodeResponse:
        """Built in the worker thread: copying many ids into a message takes time."""
        return tokenizer_pb2.EncodeResponse(
            token_ids=token_ids,
            tokenizer_sha256=self._tokenizer.sha256,
            tool_prompt=tool_prompt_to_proto(tool_prompt),
        )


def _record(**fields: str | int) -> None:
    """Adds fields to the access log line and attributes to the RPC's span."""
    annotate(**fields)
    span = current_span()
    if span.is_recording():
        for name, value in fields.items():
            span.set_attribute(f"{semconv.TOKENIZER_PREFIX}{name}", value)


def _check_num_texts(request: tokenizer_pb2.EncodeTextsRequest) -> None:
    num_texts, num_second = len(request.texts), len(request.second_texts)
    if not 1 <= num_texts <= MAX_TEXTS:
        raise invalid("texts", f"texts must have 1 to {MAX_TEXTS} items, given {num_texts}")
    if num_second not in (0, num_texts):
        raise invalid(
            "second_texts",
            f"second_texts must have as many items as texts ({num_texts}) or none, "
            f"given {num_second}",
        )


def _check_num_messages(chat: common_pb2.ChatPrompt) -> None:
    num_messages = len(chat.messages)
    if num_messages > MAX_MESSAGES:
        raise invalid(
            "messages",
            f"messages must contain at most {MAX_MESSAGES} messages, given {num_messages}",
        )


def _check_decoded(text: str) -> None:
    """Refuses a text that no gRPC message can hold. Raises MeshError (CONTEXT_TOO_LONG)."""
    num_bytes = len(text.encode())
    if num_bytes > MAX_DECODED_BYTES:
        raise MeshError(
            ErrorKind.CONTEXT_TOO_LONG,
            f"token_ids must decode to at most {MAX_DECODED_BYTES} bytes, given {num_bytes}",
            param="token_ids",
        )


def _num_characters(chat: common_pb2.ChatPrompt) -> int:
    messages = sum(
        len(message.role)
        + len(message.content)
        + len(message.name)
        + len(message.tool_calls_json)
        + len(message.tool_call_id)
        + len(message.reasoning_content)
        for message in chat.messages
    )
    return messages + len(chat.tools_json) + len(chat.template_kwargs_json)
