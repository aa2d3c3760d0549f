"""TokenizerService: the wire format on one side, `Tokenizer` on the other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import grpc.aio
from opentelemetry import trace

from mesh.context import annotate
from mesh.errors import ErrorKind, MeshError, invalid
from mesh.observability import semconv
from mesh.observability.metrics import exemplar, labelled
from mesh.process.lifecycle import SetReady
from mesh.rpc.server import Servicer
from mesh.v1 import common_pb2, tokenizer_pb2, tokenizer_pb2_grpc
from tokenizer.chat.budget import Budget
from tokenizer.chat.conversation import (
    Conversation,
    build_message,
    parse_template_kwargs,
    parse_tools,
)
from tokenizer.executor import BoundedExecutor
from tokenizer.files import TokenizerFiles
from tokenizer.metrics import ENCODE_SECONDS, TOKENS
from tokenizer.settings import TokenizerSettings
from tokenizer.tokenizer import SHORT_CHARACTERS, Tokenizer

if TYPE_CHECKING:  # generic in the stubs only
    Context = grpc.aio.ServicerContext[Any, Any]

T = TypeVar("T")

PIECE_BYTES = 1024 * 1024
"""Most bytes of a file in one message."""

RENDERED_FACTOR = 4
"""How much longer than its input a rendered prompt may be; indented JSON of tools is the most."""


class TokenizerService(tokenizer_pb2_grpc.TokenizerServiceServicer):
    """Serves one tokenizer; all work but that on short texts is done in `executor`."""

    def __init__(
        self,
        settings: TokenizerSettings,
        files: TokenizerFiles,
        tokenizer: Tokenizer,
        executor: BoundedExecutor,
    ) -> None:
        """`executor` stays the caller's, to be closed after the service."""
        self._settings = settings
        self._files = files
        self._tokenizer = tokenizer
        self._executor = executor

    @property
    def servicers(self) -> list[Servicer]:
        """What `mesh.process.lifecycle` serves."""
        descriptor = tokenizer_pb2.DESCRIPTOR.services_by_name["TokenizerService"]
        register = tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server
        return [Servicer(descriptor.full_name, register, self)]

    async def watch_ready(self, set_ready: SetReady) -> None:
        """Ready from the start: there is no instance without a loaded tokenizer."""
        await set_ready(True)
        await asyncio.Event().wait()

    async def Encode(
        self, request: tokenizer_pb2.EncodeRequest, context: Context
    ) -> tokenizer_pb2.EncodeResponse:
        """Renders and encodes; a long answer is built in the thread too."""
        started = time.monotonic()
        kind = request.WhichOneof("input")
        if kind is None:
            raise invalid("input", "input must be text or chat, given neither")
        limit = self._settings.max_input_characters
        budget = Budget(
            max_characters=RENDERED_FACTOR * limit, seconds=self._settings.template_timeout_seconds
        )

        def encode() -> tokenizer_pb2.EncodeResponse:
            if kind == "text":
                ids = self._tokenizer.encode_text(
                    request.text, add_special_tokens=request.add_special_tokens
                )
            else:
                ids = self._tokenizer.encode_conversation(_conversation(request.chat), budget)
            return tokenizer_pb2.EncodeResponse(
                token_ids=ids, tokenizer_sha256=self._tokenizer.sha256
            )

        num_characters = len(request.text) if kind == "text" else _num_characters(request.chat)
        _note(input=kind, num_characters=num_characters)
        if num_characters > limit:
            field = "text" if kind == "text" else "chat"
            raise MeshError(
                ErrorKind.CONTEXT_TOO_LONG,
                f"{field} must be at most {limit} characters, given {num_characters}",
                param=field,
            )
        # On the event loop, as it takes less than to wake a thread and return. A conversation never
        # is: what its template does with it may take any time.
        is_short = kind == "text" and num_characters <= SHORT_CHARACTERS
        response = encode() if is_short else await self._run(encode, budget)
        num_tokens = len(response.token_ids)
        _note(num_tokens=num_tokens)
        labelled(TOKENS, "encode").inc(num_tokens)
        labelled(ENCODE_SECONDS, kind).observe(time.monotonic() - started, exemplar())
        return response

    async def Decode(
        self, request: tokenizer_pb2.DecodeRequest, context: Context
    ) -> tokenizer_pb2.DecodeResponse:
        """Ids to text."""
        num_tokens = len(request.token_ids)
        _note(num_tokens=num_tokens)
        limit = self._settings.max_input_characters
        if num_tokens > limit:
            raise MeshError(
                ErrorKind.CONTEXT_TOO_LONG,
                f"token_ids must be at most {limit} ids, given {num_tokens}",
                param="token_ids",
            )

        def decode() -> str:
            return self._tokenizer.decode(
                list(request.token_ids), skip_special_tokens=request.skip_special_tokens
            )

        text = await self._executor.run(decode)
        labelled(TOKENS, "decode").inc(num_tokens)
        return tokenizer_pb2.DecodeResponse(text=text, tokenizer_sha256=self._tokenizer.sha256)

    async def GetTokenizer(
        self, request: tokenizer_pb2.GetTokenizerRequest, context: Context
    ) -> AsyncIterator[tokenizer_pb2.GetTokenizerResponse]:
        """The files in pieces, in the order of their names; an empty file is one empty piece."""
        sha256 = self._files.sha256
        if request.known_sha256 == sha256:
            _note(num_files=0)
            yield tokenizer_pb2.GetTokenizerResponse(tokenizer_sha256=sha256)
            return
        _note(num_files=len(self._files.contents))
        for name, content in self._files.contents.items():
            for start in range(0, max(1, len(content)), PIECE_BYTES):
                yield tokenizer_pb2.GetTokenizerResponse(
                    tokenizer_sha256=sha256,
                    file_name=name,
                    data=content[start : start + PIECE_BYTES],
                )

    async def _run(self, work: Callable[[], T], budget: Budget) -> T:
        try:
            return await self._executor.run(work)
        except asyncio.CancelledError:
            budget.cancel()
            raise


def _note(**fields: str | int) -> None:
    """Tells the access line and the span."""
    annotate(**fields)
    span = trace.get_current_span()
    if span.is_recording():
        for name, value in fields.items():
            span.set_attribute(f"{semconv.TOKENIZER_PREFIX}{name}", value)


def _num_characters(chat: common_pb2.ChatPrompt) -> int:
    messages = sum(
        len(message.role)
        + len(message.content)
        + len(message.name)
        + len(message.tool_calls_json)
        + len(message.tool_call_id)
        for message in chat.messages
    )
    return messages + len(chat.tools_json) + len(chat.template_kwargs_json)


def _conversation(chat: common_pb2.ChatPrompt) -> Conversation:
    messages = [
        build_message(
            index,
            role=message.role,
            content=message.content,
            name=message.name,
            tool_calls_json=message.tool_calls_json,
            tool_call_id=message.tool_call_id,
        )
        for index, message in enumerate(chat.messages)
    ]
    return Conversation(
        messages=messages,
        tools=parse_tools(chat.tools_json),
        continue_final_message=chat.continue_final_message,
        template_kwargs=parse_template_kwargs(chat.template_kwargs_json),
    )
