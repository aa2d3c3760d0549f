"""Translates between the wire format and what the pipeline speaks of; for service.py."""

from __future__ import annotations

from mesh.errors import invalid
from mesh.protocol.chat import chat_from_proto
from mesh.protocol.deltas import delta_to_proto
from mesh.protocol.finish import finish_to_proto, started_to_proto
from mesh.v1 import orchestrator_pb2
from orchestrator.embedding import Input
from orchestrator.generation import Progress
from orchestrator.text.preparation import Prompt


def prompt_of(request: orchestrator_pb2.GenerateRequest) -> Prompt:
    """What to continue. Raises MeshError if nothing is given."""
    match request.WhichOneof("prompt"):
        case "chat":
            return chat_from_proto(request.chat)
        case "text":
            return request.text
        case "token_ids":
            if not request.token_ids.ids:
                raise invalid("prompt", "prompt must have at least one token, given none")
            return list(request.token_ids.ids)
    raise invalid("prompt", "one of chat, text and token_ids must be given")


def inputs_of(request: orchestrator_pb2.EmbedRequest) -> list[Input]:
    """What to embed. Raises MeshError for an input without any."""
    inputs: list[Input] = []
    for number, each in enumerate(request.inputs):
        kind = each.WhichOneof("input")
        if kind is None:
            raise invalid("input", f"input[{number}] must be text or token_ids, given neither")
        inputs.append(each.text if kind == "text" else list(each.token_ids.ids))
    return inputs


def progress(progress: Progress) -> orchestrator_pb2.GenerateResponse:
    """All that became known of a generation at once."""
    started, delta, finish = progress
    return orchestrator_pb2.GenerateResponse(
        started=None if started is None else started_to_proto(started),
        delta=None if delta is None else delta_to_proto(delta),
        finish=None if finish is None else finish_to_proto(finish),
    )
