"""The ASGI application without sockets, for tests without streams or connections."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import cast

import httpx

from gateway.api.models import not_found
from gateway.app import build_app
from gateway.conversations.factory import make_store
from gateway.dependencies import Dependencies
from gateway.http.drain import Drain
from gateway.keys.key_ring import KeyRing
from gateway.responses.kept import KeptResponses
from gateway.settings import GatewaySettings
from gateway.streaming.resumable_streams import ResumableStreams
from gateway.upstream.client import (
    Orchestrator,
    count_tokens_request,
    detokenize_request,
    embed_request,
    generate_request,
    score_request,
    summarize_request,
    tokenize_request,
)
from gateway.upstream.generation import (
    Embedded,
    EmbeddingInputs,
    Event,
    Generation,
    Retrieved,
    Scored,
    Search,
    SearchResults,
    ServedModel,
    TextPairs,
)
from gateway.upstream.readiness import Readiness
from gateway.upstream.tokenization import (
    Detokenization,
    Detokenized,
    Tokenization,
    Tokenized,
)
from mesh.protocol.deltas import Delta
from mesh.protocol.finish import FinishReason, GenerationStarted
from mesh.protocol.summary import SummaryFinish
from mesh.protocol.usage import Usage

FINISH = SummaryFinish(FinishReason.STOP, Usage(1, 1, 0))


class DirectOrchestrator:
    """A stub orchestrator in the same process, which answers immediately."""

    async def generate(self, generation: Generation, take: object = None) -> AsyncGenerator[Event]:
        """Generate one token."""
        assert generate_request(generation).SerializeToString()
        yield GenerationStarted("fake", 1)
        yield Delta("text", 1, ())
        yield FINISH

    async def count_tokens(self, generation: Generation) -> int:
        """Count one token."""
        assert count_tokens_request(generation).SerializeToString()
        return 1

    async def tokenize(self, tokenization: Tokenization) -> Tokenized:
        """Return one token."""
        assert tokenize_request(tokenization).SerializeToString() is not None
        strs = ["a"] if tokenization.return_token_strs else []
        return Tokenized("fake", [1], strs, 2048)

    async def detokenize(self, detokenization: Detokenization) -> Detokenized:
        """Return a text."""
        assert detokenize_request(detokenization).SerializeToString() is not None
        return Detokenized("fake", "text")

    async def examples(self) -> tuple[str, ...]:
        return ("What is a weir?",)

    async def retrieve(self, query: str, num_results: int) -> Retrieved:
        """Find nothing."""
        return Retrieved((), 0, failed=False)

    async def embed(self, embedding: EmbeddingInputs) -> AsyncGenerator[Embedded]:
        """Return one vector per input."""
        assert embed_request(embedding).SerializeToString()
        inputs = embedding.inputs
        yield Embedded("fake", tuple((1.0, 0.0) for _ in inputs), len(inputs))

    async def score(self, pairs: TextPairs) -> AsyncGenerator[Scored]:
        """Return the same score for each pair."""
        assert score_request(pairs).SerializeToString()
        yield Scored("fake", "cross_encoder", [0.5 for _ in pairs.second], len(pairs.second))

    async def search(self, search: Search, take: object = None) -> AsyncGenerator[Event]:
        """Return no search results."""
        assert summarize_request(search).SerializeToString()
        if search.model not in ("", "fake"):
            raise not_found(search.model, await self.models())
        yield SearchResults(search.query, ())
        yield FINISH

    async def models(self) -> tuple[ServedModel, ...]:
        """List one model."""
        return (ServedModel("fake", 2048, 1),)

    async def problems(self, timeout: float) -> tuple[str, ...]:
        """Report that every engine is used."""
        return ()

    is_ready = True


@asynccontextmanager
async def direct_client(**settings: object) -> AsyncGenerator[httpx.AsyncClient]:
    """A client that calls the application through ASGI; it reads each response as a whole."""
    orchestrator = cast(Orchestrator, DirectOrchestrator())
    drain = Drain()
    made = GatewaySettings.model_validate(settings)
    dependencies = Dependencies(
        settings=made,
        orchestrator=orchestrator,
        readiness=Readiness(orchestrator, drain),
        drain=drain,
        keys=KeyRing(made.api_keys_file, made.api_key_list),
        resumable_streams=ResumableStreams(0),
        responses=KeptResponses(make_store(made), drain, made.response_store_bytes),
    )
    transport = httpx.ASGITransport(build_app(dependencies), raise_app_exceptions=True)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client
    assert drain.num_active == 0
