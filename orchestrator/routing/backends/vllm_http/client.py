"""vLLM by HTTP: `/v1/completions` with token ids, `/health`, `/metrics`, `/v1/models`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self, cast

import httpx
from opentelemetry.trace import Span, SpanKind
from prometheus_client.parser import text_string_to_metric_families

from mesh.context import REQUEST_ID_METADATA, current_request
from mesh.errors import ErrorKind, MeshError
from mesh.observability import semconv, tracing
from mesh.observability.recording.current import current_span
from mesh.protocol.tokens import TokenChunk
from orchestrator.generation import ModelInfo
from orchestrator.routing.backends.backend import (
    CHECK_SECONDS,
    EngineLoad,
    GenerateCall,
    TokenPair,
    WithoutAdapters,
)
from orchestrator.routing.backends.polled_health import PolledHealth
from orchestrator.routing.backends.vllm_http.request import generate_body, prompt_logprobs_body
from orchestrator.routing.backends.vllm_http.response import (
    MAX_ERROR_BYTES,
    EventReader,
    error_of,
    prompt_logprobs,
)

COMPLETIONS = "/v1/completions"

_TIMEOUT = httpx.Timeout(None, connect=CHECK_SECONDS)
"""Requests have their deadlines from the caller; only connecting has a limit here."""

_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=32)
"""A stream has a connection; the admission bounds their number."""

_UNREACHABLE = "an upstream service is unreachable"


class HttpStream:
    """The chunks of one generation; leaving the block closes the connection, which ends it."""

    def __init__(self, backend: VllmHttpBackend, call: GenerateCall) -> None:
        self._backend = backend
        self._call = call
        self._reader = EventReader(call)
        self._stack = AsyncExitStack()
        self._lines: AsyncIterator[str] | None = None
        self._headers: dict[str, str] = {}
        self._waiting: asyncio.Task[object] | None = None
        self._cancelled = False

    async def __aenter__(self) -> Self:
        await self._stack.__aenter__()
        span = self._stack.enter_context(
            tracing.detached_stage(
                f"POST {COMPLETIONS}",
                {
                    semconv.HTTP_REQUEST_METHOD: "POST",
                    semconv.URL_PATH: COMPLETIONS,
                    **tracing.address_attributes(self._backend.address),
                },
                kind=SpanKind.CLIENT,
                parent=self._call.parent,
            )
        )
        self._headers = _headers(span)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.__aexit__(kind, error, traceback)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TokenChunk:
        if self._cancelled:
            raise _cancelled()
        self._waiting = asyncio.current_task()
        try:
            return await self._next()
        except httpx.HTTPError as error:
            raise MeshError(ErrorKind.UNAVAILABLE, _UNREACHABLE) from error
        except asyncio.CancelledError:
            # `cancel` here cancels the reading task, as the caller may do as well.
            if self._cancelled and self._waiting is not None and not self._waiting.uncancel():
                raise _cancelled() from None
            raise
        finally:
            self._waiting = None

    def cancel(self) -> None:
        """Ends the call; reading then raises MeshError (CANCELLED)."""
        again, self._cancelled = self._cancelled, True
        if self._waiting is not None and not again:
            self._waiting.cancel()

    async def _next(self) -> TokenChunk:
        if self._lines is None:
            body = prompt_logprobs_body(self._call, self._backend.model_name)
            response = None if body is None else await self._backend.post(COMPLETIONS, body)
            self._lines = await self._open()
            if response is not None:
                return TokenChunk((), prompt_logprobs=prompt_logprobs(response, self._call))
        async for line in self._lines:
            chunk = self._reader.read(line)
            if chunk is not None:
                return chunk
        raise StopAsyncIteration

    async def _open(self) -> AsyncIterator[str]:
        """The lines of the response. Raises MeshError if the engine refuses the request."""
        body = generate_body(self._call, self._backend.model_name)
        stream = self._backend.client.stream("POST", COMPLETIONS, json=body, headers=self._headers)
        response = await self._stack.enter_async_context(stream)
        if response.status_code != 200:
            text = await _error_body(response)
            raise error_of(response, text, self._call.sampling.constraint)
        lines = cast("AsyncGenerator[str]", response.aiter_lines())
        self._stack.push_async_callback(lines.aclose)
        return lines


class VllmHttpBackend(PolledHealth, WithoutAdapters):
    """A client of one engine."""

    resumes_constraints = False

    def __init__(self, address: str, host: str) -> None:
        """`address` is HOST:PORT; `host` is the value of the `Host` header."""
        super().__init__()
        self.address = address
        self.model_name = ""
        """The model's name in requests, once `model` has been called."""
        self.client = httpx.AsyncClient(
            base_url=f"http://{address}",
            headers={"host": host},
            timeout=_TIMEOUT,
            limits=_LIMITS,
            trust_env=False,
        )

    async def check(self, timeout: float) -> bool:
        response = await self._get("/health", timeout)
        return response.status_code == 200

    async def model(self) -> ModelInfo:
        """The served model; the first one, which is the base model, if adapters are listed too.

        End-of-sequence tokens are unknown: they are the tokenizer's.
        """
        response = await self._get("/v1/models")
        try:
            listed = response.json()["data"][0]
            name, context_length = str(listed["id"]), int(listed["max_model_len"])
        except (ValueError, LookupError, TypeError) as error:
            message = "the engine's list of models cannot be read"
            raise MeshError(ErrorKind.UNIMPLEMENTED, message) from error
        self.model_name = name
        return ModelInfo(name, context_length)

    async def load(self) -> EngineLoad:
        response = await self._get("/metrics")
        sums: dict[str, float] = {}
        for family in text_string_to_metric_families(response.text):
            if family.name.startswith("vllm:"):
                values = [sample.value for sample in family.samples]
                sums[family.name] = sum(values)
        return EngineLoad(
            int(sums.get("vllm:num_requests_running", 0)),
            int(sums.get("vllm:num_requests_waiting", 0)),
            sums.get("vllm:kv_cache_usage_perc", 0.0),
        )

    def generate(self, call: GenerateCall) -> HttpStream:
        return HttpStream(self, call)

    async def embed(
        self, inputs: Sequence[Sequence[int]], model_sha256: str = ""
    ) -> list[Sequence[float]]:
        """One call for all inputs. `model_sha256` is not checked: vLLM has none."""
        body = {
            "model": self.model_name,
            "input": [list(token_ids) for token_ids in inputs],
            "encoding_format": "float",
        }
        answer = await self.post("/v1/embeddings", body)
        return [entry["embedding"] for entry in sorted(answer["data"], key=_index)]

    async def score(self, pairs: Sequence[TokenPair], model_sha256: str = "") -> Sequence[float]:
        """Not implemented."""
        raise MeshError(ErrorKind.UNIMPLEMENTED, "vLLM's cross-encoders are not used")

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The JSON object of a response. Raises MeshError."""
        headers = _headers(current_span())
        try:
            response = await self.client.post(path, json=body, headers=headers)
            if response.status_code == 200:
                answer: dict[str, Any] = response.json()
                return answer
        except httpx.HTTPError as error:
            raise MeshError(ErrorKind.UNAVAILABLE, _UNREACHABLE) from error
        except ValueError as error:
            message = "the engine sent a response that cannot be read"
            raise MeshError(ErrorKind.INTERNAL, message, is_reported=True) from error
        if response.status_code == 404:
            raise MeshError(ErrorKind.UNIMPLEMENTED, "the engine does not offer this")
        raise error_of(response, response.content, None)

    async def close(self) -> None:
        """Closes all connections."""
        await self.client.aclose()

    async def _get(self, path: str, timeout: float = CHECK_SECONDS) -> httpx.Response:
        try:
            return await self.client.get(path, timeout=timeout)
        except httpx.HTTPError as error:
            raise MeshError(ErrorKind.UNAVAILABLE, _UNREACHABLE) from error


async def _error_body(response: httpx.Response) -> bytes:
    """The body of a streamed response; empty if it is too long."""
    body = bytearray()
    async for part in response.aiter_bytes():
        body += part
        if len(body) > MAX_ERROR_BYTES:
            return b""
    return bytes(body)


def _headers(span: Span) -> dict[str, str]:
    """The request id and the trace context, as vLLM reads them."""
    metadata: list[tuple[str, str]] = []
    tracing.inject(metadata, span)
    headers = dict(metadata)
    request = current_request()
    if request is not None:
        headers[REQUEST_ID_METADATA] = request.request_id
    return headers


def _index(entry: dict[str, Any]) -> int:
    index: int = entry["index"]
    return index


def _cancelled() -> MeshError:
    return MeshError(ErrorKind.CANCELLED, "the call was cancelled")
