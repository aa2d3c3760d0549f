"""Client of the tokenizer service: encodes there, and loads its files to detokenize here."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import grpc.aio
from tokenizers import Tokenizer

from mesh.errors import ErrorKind, MeshError
from mesh.hub import vocabulary
from mesh.protocol.chat import ChatPrompt, ToolPrompt, chat_to_proto, tool_prompt_from_proto
from mesh.protocol.model_kind import INPUT_TYPES, InputUse
from mesh.rpc.channel import call_unary, open_stream
from mesh.text.detokenizer import Decoder
from mesh.v1 import tokenizer_pb2, tokenizer_pb2_grpc
from orchestrator.clients.end_tokens import end_tokens
from orchestrator.text.tools.formats import answer_format
from orchestrator.text.tools.tool_format import AnswerFormat

SERVICE = "mesh.v1.TokenizerService"

SHORT_CHARACTERS = 512
"""Maximum length of a prompt that is encoded here: it takes less time than a call."""


class Encoded(NamedTuple):
    """Token ids, and the decoder of the tokenizer that they belong to."""

    token_ids: Sequence[int]
    decoder: Decoder
    source: ChatPrompt | str | None = None
    """The encoded prompt; None if the prompt was token ids."""
    vocabulary_sha256: str = ""
    """Digest of the vocabulary of the token ids."""
    tool_prompt: ToolPrompt = ToolPrompt.NONE


class TextOptions(NamedTuple):
    """How texts are encoded for an encoder."""

    max_tokens: int = 0
    """Tokens that a text or a pair may have, special tokens included; 0: unlimited."""
    truncate: bool = False
    """Cut off the end of longer texts; otherwise those that certainly have more are refused."""
    prompt_name: str = ""
    """Name of the model's prompt to put before each text; empty: the one for the use."""
    use: InputUse = ""
    """What the texts are used for."""


PLAIN = TextOptions()


class EncodedText(NamedTuple):
    """Token ids of a text or a pair of texts, with special tokens."""

    token_ids: Sequence[int]
    num_first_tokens: int
    """Number of first ids whose token type is 0; the others are the second text's."""


class EncodedTexts(NamedTuple):
    """Encoded texts, in order."""

    texts: Sequence[EncodedText]
    vocabulary_sha256: str
    """Digest of the vocabulary of the token ids."""


class LocalTokenizer(NamedTuple):
    """The service's tokenizer, loaded into this process."""

    tokenizer: Tokenizer
    decoder: Decoder
    format: AnswerFormat = AnswerFormat()
    """Format of the model's answers, found in its chat template."""
    vocabulary_sha256: str = ""
    """Digest of the ids and their tokens (`mesh.hub.vocabulary`)."""
    eos_token_ids: frozenset[int] = frozenset()
    """The end-of-sequence tokens, for engines that do not report theirs."""


class TokenizerUnusable(MeshError):
    """The tokenizer service's files cannot be loaded; retrying helps only if they change."""

    def __init__(self, problem: str) -> None:
        super().__init__(ErrorKind.INTERNAL, f"the tokenizer's files cannot be loaded: {problem}")


class TokenizerClient:
    """Encodes with the service, and keeps a local copy of its tokenizer."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        """The caller owns `channel`."""
        self._stub: tokenizer_pb2_grpc.TokenizerServiceAsyncStub
        self._stub = tokenizer_pb2_grpc.TokenizerServiceStub(channel)
        self._sha256 = ""
        self._tokenizer: LocalTokenizer | None = None
        self._fetching = asyncio.Lock()

    @property
    def vocabulary_sha256(self) -> str:
        """Digest of the vocabulary that the service had last; empty before the first download."""
        return "" if self._tokenizer is None else self._tokenizer.vocabulary_sha256

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """End-of-sequence tokens of the vocabulary; empty before the first download."""
        return frozenset() if self._tokenizer is None else self._tokenizer.eos_token_ids

    async def encode_chat(
        self, prompt: ChatPrompt, max_tokens: int = 0, *, add_special_tokens: bool = False
    ) -> Encoded:
        """Renders and encodes a conversation. Raises MeshError, also if the template fails.

        A conversation that certainly has more than `max_tokens` tokens is refused sooner; 0 is no
        limit. `add_special_tokens`: in addition to those of the template.
        """
        request = tokenizer_pb2.EncodeRequest(
            chat=chat_to_proto(prompt),
            max_tokens=max_tokens,
            add_special_tokens=add_special_tokens,
        )
        return await self._encode(request, prompt, "messages")

    async def encode_text(
        self,
        text: str,
        field: str = "prompt",
        max_tokens: int = 0,
        *,
        add_special_tokens: bool = True,
    ) -> Encoded:
        """Encodes a text, by default with the tokenizer's special tokens. Raises MeshError.

        `field` is the text's name in the public API, for errors; `max_tokens` as in `encode_chat`.
        """
        request = tokenizer_pb2.EncodeRequest(
            text=text, add_special_tokens=add_special_tokens, max_tokens=max_tokens
        )
        return await self._encode(request, text, field)

    async def encode_texts(
        self,
        texts: Sequence[str],
        second_texts: Sequence[str] = (),
        options: TextOptions = PLAIN,
    ) -> EncodedTexts:
        """Encodes at most 64 texts, or pairs of them. Raises MeshError that names `texts[n]`."""
        request = tokenizer_pb2.EncodeTextsRequest(
            texts=texts,
            second_texts=second_texts,
            max_tokens=options.max_tokens,
            truncate=options.truncate,
            prompt_name=options.prompt_name,
            input_type=INPUT_TYPES[options.use],
        )
        try:
            response = await call_unary(self._stub.EncodeTexts, request)
        except MeshError as error:
            is_plain = not (second_texts or options.truncate or options.prompt_name)
            if error.kind is not ErrorKind.UNIMPLEMENTED or not is_plain:
                raise
            return await self._encode_each(texts, options.max_tokens)
        tokenizer = await self._local(response.tokenizer_sha256)
        encoded = [EncodedText(each.token_ids, each.num_first_tokens) for each in response.encoded]
        return EncodedTexts(encoded, tokenizer.vocabulary_sha256)

    async def _encode_each(self, texts: Sequence[str], max_tokens: int) -> EncodedTexts:
        """By a tokenizer of a version without EncodeTexts, as in a rollout."""
        encoded = [
            await self.encode_text(text, f"texts[{number}]", max_tokens)
            for number, text in enumerate(texts)
        ]
        return EncodedTexts(
            [EncodedText(each.token_ids, len(each.token_ids)) for each in encoded],
            encoded[0].vocabulary_sha256,
        )

    async def encode_prompt(self, text: str, max_tokens: int = 0) -> Encoded:
        """Encodes a text as `encode_text` does, a short one with the local tokenizer."""
        local = self._tokenizer
        if local is None or len(text) > SHORT_CHARACTERS:
            return await self.encode_text(text, max_tokens=max_tokens)
        token_ids = local.tokenizer.encode(text).ids
        return Encoded(token_ids, local.decoder, text, local.vocabulary_sha256)

    async def decode(
        self, token_ids: Sequence[int], field: str = "prompt", *, skip_special_tokens: bool = True
    ) -> str:
        """The text of token ids. Raises MeshError; `field` is their name in the public API."""
        request = tokenizer_pb2.DecodeRequest(
            token_ids=token_ids, skip_special_tokens=skip_special_tokens
        )
        try:
            response = await call_unary(self._stub.Decode, request)
        except MeshError as error:
            raise _with_public_field(error, field) from error
        await self._local(response.tokenizer_sha256)
        return response.text

    async def current(self) -> LocalTokenizer:
        """The local tokenizer; downloads it if there is none yet. Raises MeshError."""
        return self._tokenizer or await self._fetch("")

    async def refresh(self) -> None:
        """Downloads the tokenizer, unless the local one is still current. Raises MeshError.

        Called whenever the service becomes reachable, because its tokenizer may have changed.
        """
        async with self._fetching:
            await self._download("", hold=False)

    async def _encode(
        self, request: tokenizer_pb2.EncodeRequest, source: ChatPrompt | str, field: str
    ) -> Encoded:
        try:
            response = await call_unary(self._stub.Encode, request)
        except MeshError as error:
            raise _with_public_field(error, field) from error
        tokenizer = await self._local(response.tokenizer_sha256)
        return Encoded(
            response.token_ids,
            tokenizer.decoder,
            source,
            tokenizer.vocabulary_sha256,
            tool_prompt_from_proto(response.tool_prompt),
        )

    async def _local(self, sha256: str) -> LocalTokenizer:
        """The tokenizer that has answered a call; downloads it if it is another one."""
        if self._tokenizer is not None and sha256 == self._sha256:
            return self._tokenizer
        return await self._fetch(sha256)

    async def _fetch(self, sha256: str) -> LocalTokenizer:
        """The tokenizer with this SHA-256; "" accepts any. One download at a time."""
        async with self._fetching:
            if self._tokenizer is not None and sha256 in ("", self._sha256):
                return self._tokenizer
            return await self._download(sha256)

    async def _download(self, expected_sha256: str, *, hold: bool = True) -> LocalTokenizer:
        files: dict[str, bytearray] = {}
        sha256 = ""
        request = tokenizer_pb2.GetTokenizerRequest(known_sha256=self._sha256)
        async with open_stream(self._stub.GetTokenizer, request, hold=hold) as parts:
            async for part in parts:
                sha256 = part.tokenizer_sha256
                if part.file_name:
                    files.setdefault(part.file_name, bytearray()).extend(part.data)
        if expected_sha256 not in ("", sha256):
            # The tokenizer changed between the two calls. The next request will find one.
            raise MeshError(ErrorKind.UNAVAILABLE, "the tokenizer is being replaced")
        if self._tokenizer is not None and sha256 == self._sha256 and not files:
            return self._tokenizer
        self._tokenizer = await asyncio.to_thread(_load, files, sha256)
        self._sha256 = sha256
        return self._tokenizer


def _with_public_field(error: MeshError, field: str) -> MeshError:
    """The error with the tokenizer's field name (text, chat, token_ids) replaced by `field`."""
    name, bracket, index = (error.param or "").partition("[")
    if name not in ("text", "chat", "token_ids"):
        return error
    return error.renamed(f"{field}{bracket}{index}")


def files_sha256(files: Mapping[str, bytes | bytearray]) -> str:
    """Hexadecimal SHA-256 over all files, sorted by name: name, NUL, decimal length, NUL, bytes."""
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name}\0{len(files[name])}\0".encode())
        digest.update(files[name])
    return digest.hexdigest()


def _load(files: dict[str, bytearray], sha256: str) -> LocalTokenizer:
    """Loads downloaded files. Raises MeshError: UNAVAILABLE if they are incomplete."""
    if files_sha256(files) != sha256:
        # Parts of two tokenizers, or a stream that was cut off.
        raise MeshError(ErrorKind.UNAVAILABLE, "the tokenizer's files are incomplete")
    content = files.get("tokenizer.json")
    if content is None:
        raise TokenizerUnusable("there is no tokenizer.json")
    try:
        settings = vocabulary.parse(bytes(content))
        vocabulary_sha256 = vocabulary.digest_of(settings)
        # The service has truncated and padded already, where its settings say so.
        settings["truncation"] = settings["padding"] = None
        tokenizer = Tokenizer.from_str(json.dumps(settings))
        format = answer_format(_templates(files))
        eos = end_tokens(files, tokenizer.token_to_id)
        return LocalTokenizer(tokenizer, Decoder(tokenizer), format, vocabulary_sha256, eos)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise TokenizerUnusable(f"{type(error).__name__}: {error}") from error


def _templates(files: Mapping[str, bytes | bytearray]) -> Iterator[str]:
    """All chat templates: from `.jinja` files and from the tokenizer's settings."""
    for name, content in files.items():
        if name.endswith(".jinja"):
            yield bytes(content).decode(errors="replace")
        elif name == "tokenizer_config.json":
            template = json.loads(bytes(content)).get("chat_template")
            # A string, or a list of names and templates, whose JSON contains the templates.
            yield template if isinstance(template, str) else json.dumps(template)
