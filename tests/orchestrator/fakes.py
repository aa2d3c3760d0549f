"""A fake tokenizer and fake engines with the real gRPC interfaces, controlled by tests."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from mesh.errors import ErrorKind, MeshError, invalid
from mesh.rpc.server import Servicer
from mesh.v1 import (
    common_pb2,
    inference_pb2,
    inference_pb2_grpc,
    orchestrator_pb2_grpc,
    tokenizer_pb2,
    tokenizer_pb2_grpc,
)
from orchestrator.application import application
from orchestrator.service import OrchestratorService
from orchestrator.settings import OrchestratorSettings
from tests.helpers import Served, eventually, serve
from tests.orchestrator.tokenizers_made import byte_level

UNUSED_ADDRESS = "127.0.0.1:1"
"""An address on which no server listens."""

SCRIPT = "The quick brown fox 😀 jumps over the lazy dog [1], and naïvely sleeps [2] on."

FILE = byte_level().to_str().encode()


def sha256_of(files: dict[str, bytes]) -> str:
    """The SHA-256 over all files, as the proto file defines it."""
    spelled = (f"{name}\0{len(data)}\0".encode() + data for name, data in sorted(files.items()))
    return hashlib.sha256(b"".join(spelled)).hexdigest()


class FakeTokenizer(tokenizer_pb2_grpc.TokenizerServiceServicer):
    """A small real tokenizer. It renders a conversation as its contents, one per line."""

    def __init__(self, template: str = "") -> None:
        """`template` is served as the model's chat template, but never rendered."""
        self.prompts: list[str] = []
        self.special: list[bool] = []
        """Whether each prompt asked for the tokenizer's special tokens."""
        self.decoded: list[list[int]] = []
        self.delay = 0.0
        self.max_tokens: list[int] = []
        self.encodes_texts = True
        """False: as a tokenizer of a version without EncodeTexts."""
        self.text_requests: list[tokenizer_pb2.EncodeTextsRequest] = []
        self.tool_prompt = common_pb2.TOOL_PROMPT_UNSPECIFIED
        self.num_checks = 0
        """Calls of GetTokenizer."""
        self.num_downloads = 0
        """Calls of GetTokenizer that sent the files."""
        files = {"tokenizer.json": FILE}
        if template:
            files["chat_template.jinja"] = template.encode()
        self.serve_files(files)

    def serve_files(self, files: dict[str, bytes]) -> None:
        """Replaces the tokenizer's files; encoding goes on with the small tokenizer."""
        self.files = files
        self.sha256 = sha256_of(files)

    async def Encode(self, request: Any, context: Any) -> tokenizer_pb2.EncodeResponse:
        text = request.text
        if request.HasField("chat"):
            text = "\n".join(message.content for message in request.chat.messages)
        self.prompts.append(text)
        self.special.append(request.add_special_tokens)
        self.max_tokens.append(request.max_tokens)
        await asyncio.sleep(self.delay)
        ids = byte_level().encode(text, add_special_tokens=False).ids
        return tokenizer_pb2.EncodeResponse(
            token_ids=ids, tokenizer_sha256=self.sha256, tool_prompt=self.tool_prompt
        )

    async def EncodeTexts(self, request: Any, context: Any) -> tokenizer_pb2.EncodeTextsResponse:
        if not self.encodes_texts:
            raise MeshError(ErrorKind.UNIMPLEMENTED, "unknown method")
        self.max_tokens.append(request.max_tokens)
        self.text_requests.append(request)
        await asyncio.sleep(self.delay)
        encoded = []
        for number, text in enumerate(request.texts):
            first = byte_level().encode(text, add_special_tokens=False).ids
            second: list[int] = []
            if request.second_texts:
                second = byte_level().encode(request.second_texts[number]).ids
            ids = [*first, *second]
            if request.truncate:
                ids = ids[: request.max_tokens]
            num_first = min(len(first), len(ids))
            encoded.append(tokenizer_pb2.EncodedText(token_ids=ids, num_first_tokens=num_first))
        return tokenizer_pb2.EncodeTextsResponse(encoded=encoded, tokenizer_sha256=self.sha256)

    async def Decode(self, request: Any, context: Any) -> tokenizer_pb2.DecodeResponse:
        self.decoded.append(list(request.token_ids))
        text = byte_level().decode(
            list(request.token_ids), skip_special_tokens=request.skip_special_tokens
        )
        return tokenizer_pb2.DecodeResponse(text=text, tokenizer_sha256=self.sha256)

    async def GetTokenizer(
        self, request: Any, context: Any
    ) -> AsyncIterator[tokenizer_pb2.GetTokenizerResponse]:
        self.num_checks += 1
        if request.known_sha256 == self.sha256:
            yield tokenizer_pb2.GetTokenizerResponse(tokenizer_sha256=self.sha256)
            return
        self.num_downloads += 1
        for name, data in self.files.items():
            for begin in range(0, len(data), 4000):
                yield tokenizer_pb2.GetTokenizerResponse(
                    tokenizer_sha256=self.sha256,
                    file_name=name,
                    data=data[begin : begin + 4000],
                )


class FakeInference(inference_pb2_grpc.InferenceServiceServicer):
    """Generates the tokens of `text`, one per message; can resume after another replica."""

    def __init__(self, text: str = SCRIPT, *, context_length: int = 2048) -> None:
        self.ids = byte_level().encode(text, add_special_tokens=False).ids
        self.context_length = context_length
        self.name = "fake"
        self.eos_token_ids: list[int] = []
        self.vocabulary_sha256 = ""
        self.model_sha256 = ""
        self.adapters: dict[str, str] = {}
        """Digests of LoRA adapters by name."""
        self.loads_adapters = False
        self.load_failure: MeshError | None = None
        self.adapter_paths: dict[str, str] = {}
        """Of the adapters that were loaded at run time."""
        self.unloaded: set[str] = set()
        """Names of adapters that were unloaded; copies of them are refused."""
        self.load_gate: asyncio.Event | None = None
        """Adapters are loaded when it is set."""
        self.accept_delay = 0.0
        self.delay = 0.0
        """Seconds before each token."""
        self.fail_after: int | None = None
        """Index of the token before which streams end with `failure`; None: never."""
        self.failure = MeshError(ErrorKind.UNAVAILABLE, "killed")
        self.num_failing = 1_000
        """Number of streams that fail in this way."""
        self.no_finish = False
        """Ends streams with UNAVAILABLE after their last token, without a finish."""
        self.at_once = False
        """Sends all tokens and the finish in one message."""
        self.refusal: MeshError | None = None
        self.prompt_logprobs = True
        self.embedded: list[list[list[int]]] = []
        self.scored: list[list[list[int]]] = []
        self.kind = common_pb2.MODEL_KIND_UNSPECIFIED
        self.requests: list[inference_pb2.InferenceServiceGenerateRequest] = []
        self.num_open = 0

    async def Generate(
        self, request: inference_pb2.InferenceServiceGenerateRequest, context: Any
    ) -> AsyncIterator[inference_pb2.InferenceServiceGenerateResponse]:
        self.requests.append(request)
        if request.model_sha256 not in ("", self.model_sha256, *self.adapters.values()):
            raise MeshError(ErrorKind.UNAVAILABLE, "another model")
        if self.refusal is not None:
            raise self.refusal
        self.num_open += 1
        try:
            await asyncio.sleep(self.accept_delay)
            if self.at_once:
                everything = chunk(self.ids)
                everything.finish.reason = common_pb2.FINISH_REASON_STOP
                everything.finish.usage.completion_tokens = len(self.ids)
                yield everything
                return
            yield chunk([])
            if request.sampling.HasField("num_prompt_logprobs") and self.prompt_logprobs:
                yield prompt_chunk(request)
            num_prompt = len(request.token_ids) - request.num_resumed_tokens
            limit = min(request.sampling.max_tokens, len(self.ids))
            for number in range(request.num_resumed_tokens, limit):
                if number == self.fail_after and len(self.requests) <= self.num_failing:
                    # gRPC may drop what was sent just before an error.
                    await asyncio.sleep(0.01)
                    raise self.failure
                await asyncio.sleep(self.delay)
                yield chunk([self.ids[number]], request.sampling)
            if self.no_finish:
                raise MeshError(ErrorKind.UNAVAILABLE, "killed")
            stopped = limit == len(self.ids)
            yield inference_pb2.InferenceServiceGenerateResponse(
                finish=inference_pb2.GenerationFinish(
                    reason=common_pb2.FINISH_REASON_STOP
                    if stopped
                    else common_pb2.FINISH_REASON_LENGTH,
                    usage=common_pb2.Usage(prompt_tokens=num_prompt, completion_tokens=limit),
                )
            )
        finally:
            self.num_open -= 1

    async def Embed(
        self, request: inference_pb2.InferenceServiceEmbedRequest, context: Any
    ) -> inference_pb2.InferenceServiceEmbedResponse:
        if request.model_sha256 not in ("", self.model_sha256):
            raise MeshError(ErrorKind.UNAVAILABLE, "another model")
        if self.refusal is not None:
            raise self.refusal
        self.embedded.append([list(each.ids) for each in request.inputs])
        self.num_open += 1
        try:
            await asyncio.sleep(self.accept_delay)
        finally:
            self.num_open -= 1
        vectors = [[float(len(each.ids)), float(sum(each.ids))] for each in request.inputs]
        return inference_pb2.InferenceServiceEmbedResponse(
            embeddings=[common_pb2.Embedding(values=vector) for vector in vectors]
        )

    async def Score(
        self, request: inference_pb2.InferenceServiceScoreRequest, context: Any
    ) -> inference_pb2.InferenceServiceScoreResponse:
        if self.refusal is not None:
            raise self.refusal
        self.scored.append([list(each.token_ids) for each in request.inputs])
        scores = [each.num_first_tokens / len(each.token_ids) for each in request.inputs]
        return inference_pb2.InferenceServiceScoreResponse(scores=scores)

    async def GetModel(self, request: Any, context: Any) -> inference_pb2.GetModelResponse:
        return inference_pb2.GetModelResponse(
            name=self.name,
            context_length=self.context_length,
            vocab_size=400,
            eos_token_ids=self.eos_token_ids,
            vocabulary_sha256=self.vocabulary_sha256,
            model_sha256=self.model_sha256,
            kind=self.kind,
            adapters=[
                inference_pb2.LoadedAdapter(
                    name=name, model_sha256=digest, path=self.adapter_paths.get(name, "")
                )
                for name, digest in self.adapters.items()
            ],
            allows_loading_adapters=self.loads_adapters,
        )

    async def LoadAdapter(self, request: Any, context: Any) -> inference_pb2.LoadAdapterResponse:
        if self.load_gate is not None:
            await self.load_gate.wait()
        if self.load_failure is not None:
            raise self.load_failure
        if request.copied_sha256 and request.name in self.unloaded:
            raise invalid("lora_name", "it was unloaded here")
        self.adapter_paths[request.name] = request.path
        self.adapters[request.name] = hashlib.sha256(request.path.encode()).hexdigest()
        return inference_pb2.LoadAdapterResponse(model_sha256=self.adapters[request.name])

    async def UnloadAdapter(
        self, request: Any, context: Any
    ) -> inference_pb2.UnloadAdapterResponse:
        del self.adapters[request.name]
        self.unloaded.add(request.name)
        return inference_pb2.UnloadAdapterResponse()


def chunk(
    token_ids: list[int], sampling: common_pb2.SamplingParams | None = None
) -> inference_pb2.InferenceServiceGenerateResponse:
    """One message with these ids. If requested, the log probability of a token is minus its id."""
    message = inference_pb2.TokenChunk(token_ids=token_ids)
    if sampling is not None and sampling.HasField("num_logprobs"):
        for token_id in token_ids:
            top = [
                common_pb2.TopLogprob(token_id=other, logprob=-other)
                for other in range(token_id, token_id + sampling.num_logprobs)
            ]
            message.logprobs.add(token_id=token_id, logprob=-token_id, top=top)
    return inference_pb2.InferenceServiceGenerateResponse(chunk=message)


def prompt_chunk(
    request: inference_pb2.InferenceServiceGenerateRequest,
) -> inference_pb2.InferenceServiceGenerateResponse:
    """A message with the log probabilities of the prompt, computed as in `chunk`."""
    sampling = common_pb2.SamplingParams(num_logprobs=request.sampling.num_prompt_logprobs)
    message = chunk(list(request.token_ids)[1:], sampling).chunk
    return inference_pb2.InferenceServiceGenerateResponse(
        chunk=inference_pb2.TokenChunk(prompt_logprobs=message.logprobs)
    )


@dataclass
class Orchestrator:
    """The real orchestrator, connected to the fakes."""

    stub: orchestrator_pb2_grpc.OrchestratorServiceAsyncStub
    service: OrchestratorService
    served: Served
    tokenizer: FakeTokenizer
    tokenizer_served: Served
    engines: list[FakeInference]
    upstreams: list[Served] = field(default_factory=list)

    @property
    def engine(self) -> FakeInference:
        """The only engine."""
        [engine] = self.engines
        return engine


@asynccontextmanager
async def orchestrator(
    *engines: FakeInference, template: str = "", **settings: Any
) -> AsyncIterator[Orchestrator]:
    """A ready orchestrator. Afterwards asserts that it has released all resources."""
    tokenizer = FakeTokenizer(template)
    async with AsyncExitStack() as stack:
        register = tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server
        tokenizer_served = await stack.enter_async_context(
            serve(Servicer("mesh.v1.TokenizerService", register, tokenizer))
        )
        upstreams = []
        for engine in engines:
            add = inference_pb2_grpc.add_InferenceServiceServicer_to_server
            servicer = Servicer("mesh.v1.InferenceService", add, engine)
            upstreams.append(await stack.enter_async_context(serve(servicer)))
        loaded = OrchestratorSettings(
            **{
                "tokenizer_host": tokenizer_served.address,
                "inference_host": ",".join(each.address for each in upstreams) or UNUSED_ADDRESS,
                **settings,
            }
        )
        service = await stack.enter_async_context(application(loaded))
        served = await stack.enter_async_context(serve(*service.servicers))
        replicas = service._replicas
        await eventually(lambda: len(replicas.ready) == len(engines), "all engines ready")
        yield Orchestrator(
            stub=orchestrator_pb2_grpc.OrchestratorServiceStub(served.channel),
            service=service,
            served=served,
            tokenizer=tokenizer,
            tokenizer_served=tokenizer_served,
            engines=list(engines),
            upstreams=upstreams,
        )
        await eventually(lambda: len(service._requests) == 0, "the request table is empty")
        assert service._pipeline._admission.num_admitted == 0
        await eventually(lambda: all(e.num_open == 0 for e in engines), "engines are idle")
