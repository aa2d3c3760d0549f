"""Client of the orchestrator, and the only module of the gateway that uses generated types."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TypeVar

import grpc.aio

from gateway.keys.rate_limiter import TokenCharge, check_priority
from gateway.upstream.field_names import FieldNames
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
from gateway.upstream.tokenization import (
    Detokenization,
    Detokenized,
    Tokenization,
    Tokenized,
)
from mesh.errors import INTERNAL_MESSAGE, ErrorKind, MeshError
from mesh.protocol.api_request import api_request_to_proto
from mesh.protocol.chat import ChatPrompt, chat_to_proto, tool_choice_to_proto
from mesh.protocol.deltas import Delta, delta_from_proto
from mesh.protocol.finish import (
    FinishReason,
    GenerationFinish,
    GenerationStarted,
    reason_from_proto,
    started_from_proto,
)
from mesh.protocol.model_kind import INPUT_TYPES, kind_from_proto
from mesh.protocol.prompt import set_prompt
from mesh.protocol.sampling_params import sampling_to_proto
from mesh.protocol.search import Source
from mesh.protocol.similarity import Similarities
from mesh.protocol.summary import (
    GROUNDED_TO_PROTO,
    RelatedQuestions,
    SummaryFinish,
    citation_from_proto,
    failover_causes,
    status_from_proto,
    summary_finish_from_proto,
)
from mesh.protocol.tokens import TokenIds
from mesh.protocol.usage import usage_from_proto
from mesh.rpc.channel import call_unary, open_stream
from mesh.rpc.peers.balanced_channel import BalancedChannel
from mesh.v1 import orchestrator_pb2, orchestrator_pb2_grpc

logger = logging.getLogger("gateway.upstream.client")

SERVICE = "mesh.v1.OrchestratorService"

LONG_CONVERSATION = 256
"""Number of messages above which a conversation is converted to protobuf in a thread."""

LONG_PROMPT = 32_768
"""Number of token ids above which a prompt is."""

BY_EMBEDDINGS = "embedding_similarity"

_SCORE_METHODS: dict[int, str] = {
    orchestrator_pb2.SCORE_METHOD_EMBEDDING_SIMILARITY: BY_EMBEDDINGS,
    orchestrator_pb2.SCORE_METHOD_CROSS_ENCODER: "cross_encoder",
}

TakeDelta = Callable[[Delta], bool]

Batch = TypeVar("Batch", Embedded, Scored)
Value = TypeVar("Value", Generation, Search)
Request = TypeVar("Request")
Response = TypeVar("Response")


class Orchestrator:
    """Calls the orchestrators over a channel that the caller owns."""

    def __init__(self, channel: BalancedChannel) -> None:
        self._channel = channel
        self._stub = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)

    def generate(
        self, generation: Generation, take: TakeDelta | None = None
    ) -> AsyncGenerator[Event]:
        """GenerationStarted, deltas, one finish; raises MeshError. Close it to cancel the call.

        `take` gets each delta that arrives while the generator's reader waits; it returns whether
        it has taken it, so that the reader does not get it.
        """
        check_priority(generation.sampling.priority)
        return _events(self._stub.Generate, generation, generate_request, generate_events, take)

    def search(self, search: Search, take: TakeDelta | None = None) -> AsyncGenerator[Event]:
        """SearchResults, deltas, one finish; raises MeshError. Close it to cancel the call.

        Of a conversation also SearchStatus before the deltas and RelatedQuestions after the finish.
        `take` as in `generate`.
        """
        return _events(
            self._stub.SummarizeStream,
            search,
            summarize_request,
            summarize_events,
            take,
        )

    async def embed(self, embedding: EmbeddingInputs) -> AsyncGenerator[Embedded]:
        """Embeddings, batch by batch; raises MeshError. Close it to cancel the call."""
        call = _batches(self._stub.Embed, embed_request(embedding), embedded, embedding.names)
        async with aclosing(call) as batches:
            async for batch in batches:
                yield batch

    async def score(self, pairs: TextPairs) -> AsyncGenerator[Scored]:
        """Scores, batch by batch; raises MeshError. Close it to cancel the call."""
        call = _batches(self._stub.Score, score_request(pairs), scored, pairs.names)
        try:
            async with aclosing(call) as batches:
                async for batch in batches:
                    yield batch
            return
        except MeshError as error:
            if error.kind is not ErrorKind.UNIMPLEMENTED or error.is_reported:
                raise
        # During a rollout: an orchestrator of an earlier version only embeds.
        async with aclosing(self._compare(pairs)) as comparisons:
            async for comparison in comparisons:
                yield comparison

    async def _compare(self, pairs: TextPairs) -> AsyncGenerator[Scored]:
        """Scores by embeddings that are compared here."""
        has_one_first = len(pairs.first) == 1
        similarities = Similarities(has_one_first=has_one_first)
        async with aclosing(self.embed(_texts_of(pairs, has_one_first))) as batches:
            async for batch in batches:
                # In a thread: the cosines of long vectors take milliseconds.
                scores = await asyncio.to_thread(similarities.add, batch.vectors)
                yield Scored(batch.model, BY_EMBEDDINGS, scores, batch.prompt_tokens)

    async def retrieve(self, query: str, num_results: int) -> Retrieved:
        """Search without a summary; raises MeshError."""
        request = orchestrator_pb2.RetrieveRequest(query=query, num_results=num_results)
        response = await call_unary(self._stub.Retrieve, request)
        results = _results(response.results).results
        return Retrieved(results, response.num_relevant, response.failed)

    async def examples(self) -> tuple[str, ...]:
        """Questions that the documents answer; raises MeshError."""
        request = orchestrator_pb2.SuggestQuestionsRequest()
        response = await call_unary(self._stub.SuggestQuestions, request)
        return tuple(response.questions)

    async def count_tokens(self, generation: Generation) -> int:
        """The number of tokens of the prompt of `generation`; raises MeshError."""
        try:
            response = await call_unary(self._stub.CountTokens, count_tokens_request(generation))
        except MeshError as error:
            if generation.names is None:
                raise
            raise generation.names.public(error) from error
        return response.num_tokens

    async def tokenize(self, tokenization: Tokenization) -> Tokenized:
        """The tokens of a prompt; raises MeshError."""
        try:
            request = tokenize_request(tokenization)
            return tokenized(await call_unary(self._stub.Tokenize, request))
        except MeshError as error:
            raise tokenization.names.public(error) from error

    async def detokenize(self, detokenization: Detokenization) -> Detokenized:
        """The text of token ids; raises MeshError."""
        try:
            request = detokenize_request(detokenization)
            response = await call_unary(self._stub.Detokenize, request)
        except MeshError as error:
            raise detokenization.names.public(error) from error
        return Detokenized(response.model, response.text)

    async def load_adapter(self, name: str, path: str, model: str) -> None:
        """Loads a LoRA adapter on all replicas of a model; raises MeshError."""
        request = orchestrator_pb2.OrchestratorServiceLoadAdapterRequest(
            name=name, path=path, model=model
        )
        await call_unary(self._stub.LoadAdapter, request)

    async def unload_adapter(self, name: str) -> None:
        """Unloads a LoRA adapter from all replicas; raises MeshError."""
        request = orchestrator_pb2.OrchestratorServiceUnloadAdapterRequest(name=name)
        await call_unary(self._stub.UnloadAdapter, request)

    async def models(self) -> tuple[ServedModel, ...]:
        """The served models; raises MeshError."""
        response = await call_unary(self._stub.ListModels, orchestrator_pb2.ListModelsRequest())
        return tuple(
            ServedModel(
                model.name,
                model.context_length,
                model.created_unix_seconds,
                kind_from_proto(model.kind),
            )
            for model in response.models
        )

    async def problems(self, timeout: float) -> tuple[str, ...]:
        """Why the orchestrator refuses engines; empty if it refuses none, or after `timeout`."""
        request = orchestrator_pb2.ListModelsRequest()
        try:
            response = await call_unary(self._stub.ListModels, request, timeout, hold=False)
            return tuple(response.problems)
        except MeshError:
            return ()

    @property
    def is_ready(self) -> bool:
        """Whether a token can be produced now."""
        return self._channel.is_ready

    async def wait_changed(self) -> None:
        """Returns when an orchestrator has become ready or has stopped being ready."""
        await self._channel.next_change().wait()


async def _batches(
    call: grpc.aio.UnaryStreamMultiCallable[Request, Response],
    request: Request,
    batch_of: Callable[[Response], Batch],
    names: FieldNames,
) -> AsyncGenerator[Batch]:
    charge = TokenCharge()
    num_tokens = 0
    try:
        async with open_stream(call, request) as responses:
            async for response in responses:
                batch = batch_of(response)
                num_tokens += batch.prompt_tokens
                charge.add(batch.prompt_tokens)
                yield batch
    except MeshError as error:
        raise names.public(error) from error
    charge.settle(num_tokens)


async def _events(
    call: grpc.aio.UnaryStreamMultiCallable[Request, Response],
    value: Value,
    request_of: Callable[[Value], Request],
    events_of: Callable[[Response], list[Event]],
    take: TakeDelta | None = None,
) -> AsyncGenerator[Event]:
    is_finished = False
    follows = isinstance(value, Search) and value.num_related > 0
    request = await asyncio.to_thread(request_of, value) if _is_long(value) else request_of(value)
    charge = TokenCharge()
    try:
        async with open_stream(call, request) as responses:
            async for response in responses:
                for event in events_of(response):
                    _charge(charge, event)
                    if isinstance(event, GenerationFinish):
                        is_finished = True
                        if not follows:
                            responses.has_last()
                    yield event
                if take is not None and not is_finished:
                    responses.pass_on(_passing(take, charge))
                    take = None
    except MeshError as error:
        if value.names is None:
            raise
        raise value.names.public(error) from error
    if not is_finished:
        raise broken("the stream ended without a finish")


def _passing(
    take: TakeDelta, charge: TokenCharge
) -> Callable[[list[Response], object], list[Response]]:
    """Gives `take` the messages that are a delta, and leaves the others."""

    def pass_on(responses: list[Response], _: object) -> list[Response]:
        for number, response in enumerate(responses):
            delta = _only_delta(response)
            if delta is None or not take(delta):
                return responses[number:]
            charge.add(delta.num_tokens)
        return []

    return pass_on


def _only_delta(response: object) -> Delta | None:
    """The delta in a message without anything else; None if it is another one."""
    match response:
        case orchestrator_pb2.GenerateResponse():
            has_only_delta = response.HasField("delta") and not (
                response.HasField("finish") or response.HasField("started")
            )
            return delta_from_proto(response.delta) if has_only_delta else None
        case orchestrator_pb2.SummarizeStreamResponse():
            return delta_from_proto(response.delta) if response.HasField("delta") else None
    return None


def _is_long(value: object) -> bool:
    """Whether the conversion to protobuf takes milliseconds, which would delay other requests."""
    match value.prompt if isinstance(value, Generation) else None:
        case ChatPrompt(messages=messages):
            return len(messages) > LONG_CONVERSATION
        case TokenIds(ids=ids):
            return len(ids) > LONG_PROMPT
    return False


def _charge(charge: TokenCharge, event: Event) -> None:
    if isinstance(event, Delta):
        charge.add(event.num_tokens)
    elif isinstance(event, GenerationStarted):
        charge.add(event.prompt_tokens)
    elif isinstance(event, GenerationFinish):
        charge.settle(event.usage.prompt_tokens + event.usage.completion_tokens)


def broken(what: str) -> MeshError:
    """Log that the orchestrator violated the contract; returns the error for the client."""
    logger.error("upstream violated the contract", extra={"error": what})
    return MeshError(ErrorKind.INTERNAL, INTERNAL_MESSAGE)


def generate_request(generation: Generation) -> orchestrator_pb2.GenerateRequest:
    """Convert to protobuf."""
    choice = generation.tool_choice
    request = orchestrator_pb2.GenerateRequest(
        model=generation.model,
        sampling=sampling_to_proto(generation.sampling),
        stop=generation.stop,
        echo=generation.echo,
        echo_in_parts=generation.echo,
        tool_choice=None if choice is None else tool_choice_to_proto(choice),
        fit_max_tokens=generation.fit_max_tokens,
    )
    if generation.api_request is not None:
        request.api_request.CopyFrom(api_request_to_proto(generation.api_request))
    if generation.sources is not None:
        request.grounding.SetInParent()
        for source in generation.sources:
            request.grounding.sources.add(**source._asdict())
    set_prompt(request, generation.prompt)
    return request


def count_tokens_request(generation: Generation) -> orchestrator_pb2.CountTokensRequest:
    """Convert to protobuf."""
    request = orchestrator_pb2.CountTokensRequest(model=generation.model)
    set_prompt(request, generation.prompt)
    return request


def generate_events(response: orchestrator_pb2.GenerateResponse) -> list[Event]:
    """The events in a message, at least one, in order. Raises MeshError."""
    events: list[Event] = []
    if response.HasField("started"):
        events.append(started_from_proto(response.started))
    if response.HasField("delta"):
        events.append(delta_from_proto(response.delta))
    if response.HasField("finish"):
        finish = response.finish
        reason, usage = _reason(finish.reason), usage_from_proto(finish.usage)
        losses = (finish.num_resumptions, failover_causes(finish))
        if finish.citation_details:
            details = tuple(map(citation_from_proto, finish.citation_details))
            events.append(
                SummaryFinish(reason, usage, finish.stop_string, *losses, citation_details=details)
            )
        else:
            events.append(GenerationFinish(reason, usage, finish.stop_string, *losses))
    if not events:
        raise broken("a message without an event")
    return events


def summarize_request(search: Search) -> orchestrator_pb2.SummarizeRequest:
    """Convert to protobuf."""
    api = search.api_request
    request = orchestrator_pb2.SummarizeRequest(
        query=search.query,
        num_results=search.num_results,
        max_tokens=search.max_tokens,
        model=search.model,
        safe_search=search.safe_search,
        api_request=None if api is None else api_request_to_proto(api),
        max_searches=search.max_searches,
        num_related=search.num_related,
    )
    if search.grounded is not None:
        request.grounded = GROUNDED_TO_PROTO[search.grounded]
    for turn in search.history:
        request.history.add(query=turn.query, summary=turn.summary)
    return request


def summarize_events(response: orchestrator_pb2.SummarizeStreamResponse) -> list[Event]:
    """The event in a message. Raises MeshError."""
    kind = response.WhichOneof("event")
    if kind == "delta":
        return [delta_from_proto(response.delta)]
    if kind == "results":
        return [_results(response.results)]
    if kind == "related":
        return [RelatedQuestions(tuple(response.related.questions))]
    try:
        if kind == "status":
            return [status_from_proto(response.status)]
        if kind == "finish":
            return [summary_finish_from_proto(response.finish)]
    except ValueError as error:
        raise broken(str(error)) from None
    raise broken("a message without an event")


def _results(results: orchestrator_pb2.SearchResults) -> SearchResults:
    return SearchResults(
        results.query,
        tuple(
            Source(each.position, each.title, each.url, each.snippet, each.score)
            for each in results.results
        ),
        results.model,
        tuple(results.searches),
    )


def _reason(number: int) -> FinishReason:
    try:
        return reason_from_proto(number)
    except ValueError as error:
        raise broken(str(error)) from None


def embed_request(embedding: EmbeddingInputs) -> orchestrator_pb2.EmbedRequest:
    """Convert to protobuf."""
    request = orchestrator_pb2.EmbedRequest(
        model=embedding.model,
        **embedding.limit._asdict(),
        prompt_name=embedding.prompt_name,
        input_type=INPUT_TYPES[embedding.use],
    )
    for each in embedding.inputs:
        added = request.inputs.add()
        if isinstance(each, str):
            added.text = each
        else:
            added.token_ids.ids.extend(each.ids)
    return request


def score_request(pairs: TextPairs) -> orchestrator_pb2.ScoreRequest:
    """Convert to protobuf."""
    return orchestrator_pb2.ScoreRequest(
        model=pairs.model,
        first_texts=pairs.first,
        second_texts=pairs.second,
        **pairs.limit._asdict(),
        is_search=pairs.is_search,
    )


def _texts_of(pairs: TextPairs, has_one_first: bool) -> EmbeddingInputs:
    """One text and those to compare it with, or a, b, a, b, …"""
    numbered = [
        [(text, f"{field}[{number}]") for number, text in enumerate(texts)]
        for field, texts in (("first_texts", pairs.first), ("second_texts", pairs.second))
    ]
    first, second = numbered
    if has_one_first:
        ordered = first + second
    else:
        ordered = [each for pair in zip(first, second, strict=True) for each in pair]
    places = {f"input[{n}]": pairs.names.path(field) for n, (_, field) in enumerate(ordered)}
    texts = [text for text, _ in ordered]
    return EmbeddingInputs(pairs.model, texts, pairs.names.and_also(places), pairs.limit)


def scored(response: orchestrator_pb2.ScoreResponse) -> Scored:
    """Convert from protobuf. Raises MeshError."""
    method = _SCORE_METHODS.get(response.method)
    if method is None:
        raise broken(f"unknown method of scores: {response.method}")
    return Scored(response.model, method, response.scores, response.prompt_tokens)


def embedded(response: orchestrator_pb2.EmbedResponse) -> Embedded:
    """Convert from protobuf."""
    vectors = tuple(embedding.values for embedding in response.embeddings)
    return Embedded(response.model, vectors, response.prompt_tokens)


def tokenize_request(tokenization: Tokenization) -> orchestrator_pb2.TokenizeRequest:
    """Convert to protobuf."""
    request = orchestrator_pb2.TokenizeRequest(
        model=tokenization.model,
        add_special_tokens=tokenization.add_special_tokens,
        return_token_strs=tokenization.return_token_strs,
    )
    if isinstance(tokenization.prompt, str):
        request.text = tokenization.prompt
    else:
        request.chat.CopyFrom(chat_to_proto(tokenization.prompt))
    return request


def tokenized(response: orchestrator_pb2.TokenizeResponse) -> Tokenized:
    """Convert from protobuf."""
    return Tokenized(
        response.model, response.token_ids, response.token_strs, response.context_length
    )


def detokenize_request(detokenization: Detokenization) -> orchestrator_pb2.DetokenizeRequest:
    """Convert to protobuf."""
    return orchestrator_pb2.DetokenizeRequest(
        model=detokenization.model, token_ids=detokenization.token_ids
    )
