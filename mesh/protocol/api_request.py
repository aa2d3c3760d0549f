"""The request of the API's client that a generation is part of, for the generation's span."""

from __future__ import annotations

from typing import NamedTuple

from mesh.v1 import orchestrator_pb2


class ApiRequest(NamedTuple):
    """What the gateway knows of the request; changes no answer."""

    response_id: str
    """Id of the response that the client gets."""
    stream: bool
    """Whether the client gets the answer in pieces."""
    num_choices: int = 1
    """Answers that the client asked for; each is one generation."""
    choice_index: int = 0
    """Number of this answer, from 0."""


def api_request_to_proto(request: ApiRequest) -> orchestrator_pb2.ApiRequest:
    """Convert to protobuf."""
    return orchestrator_pb2.ApiRequest(
        response_id=request.response_id,
        stream=request.stream,
        num_choices=request.num_choices,
        choice_index=request.choice_index,
    )


def api_request_from_proto(
    message: orchestrator_pb2.GenerateRequest | orchestrator_pb2.SummarizeRequest,
) -> ApiRequest | None:
    """The field `api_request` of a message; None if it is absent."""
    if not message.HasField("api_request"):
        return None
    found = message.api_request
    return ApiRequest(found.response_id, found.stream, found.num_choices or 1, found.choice_index)
