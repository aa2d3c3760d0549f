"""The gateway's one upstream. Generated types are known here and nowhere else in the gateway."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TypeVar

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.keys.allowance import Spending
from gateway.upstream import messages
from gateway.upstream.generation import (
    Delta,
    Embedded,
    Event,
    Finish,
    Generation,
    Search,
    ServedModel,
    Started,
    TokenIds,
)
from mesh.errors import MeshError
from mesh.rpc.channel import call_unary, open_stream
from mesh.v1 import orchestrator_pb2, orchestrator_pb2_grpc

SERVICE = "mesh.v1.OrchestratorService"

Asked = TypeVar("Asked")
Request = TypeVar("Request")
Response = TypeVar("Response")


class Orchestrator:
    """Calls the orchestrator over a channel that the caller owns."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)
        self._health = health_pb2_grpc.HealthStub(channel)

    def generate(self, generation: Generation) -> AsyncGenerator[Event]:
        """Started, deltas, one Finish; raises MeshError. Close it to cancel the call."""
        return _events(
            self._stub.Generate, generation, messages.generate_request, messages.generate_events
        )

    def search(self, search: Search) -> AsyncGenerator[Event]:
        """SearchResults, deltas, one Finish; raises MeshError. Close it to cancel the call."""
        return _events(
            self._stub.SummarizeStream,
            search,
            messages.summarize_request,
            messages.summarize_events,
        )

    async def embed(self, inputs: Sequence[str | TokenIds], model: str) -> AsyncGenerator[Embedded]:
        """The inputs' vectors, batch by batch; raises MeshError. Close it to cancel the call."""
        spending = Spending()
        num_tokens = 0
        request = messages.embed_request(inputs, model)
        async with open_stream(self._stub.Embed, request) as responses:
            async for response in responses:
                embedded = messages.embedded(response)
                num_tokens += embedded.prompt_tokens
                spending.add(embedded.prompt_tokens)
                yield embedded
        spending.settle(num_tokens)

    async def models(self) -> tuple[ServedModel, ...]:
        """The models that can be asked for; raises MeshError."""
        response = await call_unary(self._stub.ListModels, orchestrator_pb2.ListModelsRequest())
        return tuple(
            ServedModel(model.name, model.context_length, model.created_unix_seconds)
            for model in response.models
        )

    async def is_serving(self, timeout: float) -> bool:
        """Whether a token can be produced now; False also if that is not told in time."""
        request = health_pb2.HealthCheckRequest(service=SERVICE)
        try:
            response = await call_unary(self._health.Check, request, timeout)
        except MeshError:
            return False
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)


async def _events(
    call: grpc.aio.UnaryStreamMultiCallable[Request, Response],
    asked: Asked,
    request_of: Callable[[Asked], Request],
    events_of: Callable[[Response], list[Event]],
) -> AsyncGenerator[Event]:
    last: Event | None = None
    request = request_of(asked)
    spending = Spending()
    async with open_stream(call, request) as responses:
        async for response in responses:
            for last in events_of(response):
                _charge(spending, last)
                if isinstance(last, Finish):
                    responses.has_last()
                yield last
    if not isinstance(last, Finish):
        raise messages.broken("the stream ended without a finish")


def _charge(spending: Spending, event: Event) -> None:
    if isinstance(event, Delta):
        spending.add(event.num_tokens)
    elif isinstance(event, Started):
        spending.add(event.prompt_tokens)
    elif isinstance(event, Finish):
        spending.settle(event.usage.prompt_tokens + event.usage.completion_tokens)
