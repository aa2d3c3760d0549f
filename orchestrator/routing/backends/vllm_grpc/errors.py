"""vLLM's errors as Weir's, by gRPC status and text: vLLM sends no further details."""

from __future__ import annotations

import re

import grpc
import grpc.aio

from mesh.errors import INTERNAL_MESSAGE, ErrorKind, MeshError
from mesh.protocol.constraints import OutputConstraint

RETRY_SECONDS = 1.0
"""Time after which a request that a full engine has refused may be repeated."""

_TOO_LONG = re.compile(r"maximum (model|context) length")
_PARAMETER = re.compile(r"\(parameter=(\w+), value=.*\)")
_LEADING = re.compile(r"(\w+) must be ")
_UNKNOWN_ID = "out of vocabulary"
_BUSY = "currently busy"
_TOO_LARGE = "message larger than max"
"""In gRPC's own error for a message."""
_DEAD = re.compile(r"EngineCore|EngineDead|engine is (dead|not alive)", re.IGNORECASE)

_FIELDS = {"logprobs": "num_logprobs", "prompt_logprobs": "num_prompt_logprobs"}
"""Names of parameters that differ here."""

_PROMPTS = ("tokenized.input_ids", "token_ids", "prompt")


def engine_error(
    error: MeshError, constraint: OutputConstraint | None = None, param: str = "prompt"
) -> MeshError:
    """The error of a call to an engine, with the engine's own text where that is for clients.

    `constraint` is the request's; `param` is the field that the token ids come from.
    """
    cause = error.__cause__
    if error.is_reported:  # by Weir's own engine, which serves this protocol as well
        return error.renamed(error.param and _field(error.param, constraint, param))
    if not isinstance(cause, grpc.aio.AioRpcError):
        return error
    return by_status(cause.code(), cause.details() or "", constraint, param) or error


def by_status(
    code: grpc.StatusCode, details: str, constraint: OutputConstraint | None, param: str
) -> MeshError | None:
    """The error for a status that the engine has sent; None if gRPC itself may have made it."""
    exhausted = code is grpc.StatusCode.RESOURCE_EXHAUSTED and _TOO_LARGE not in details
    if exhausted or _BUSY in details:
        return MeshError(
            ErrorKind.OVERLOADED, "the engine's queue is full", retry_after=RETRY_SECONDS
        )
    match code:
        case grpc.StatusCode.INVALID_ARGUMENT:
            return refusal(details, constraint, param)
        case grpc.StatusCode.INTERNAL if _DEAD.search(details):
            return MeshError(ErrorKind.UNAVAILABLE, "the engine has stopped")
        case grpc.StatusCode.INTERNAL if not details.startswith("Received RST_STREAM"):
            return failed()
        case grpc.StatusCode.UNIMPLEMENTED:
            return MeshError(ErrorKind.UNIMPLEMENTED, "the engine does not offer this")
    return None


def failed() -> MeshError:
    """The error of a request that the engine has failed alone; the cause is not known.

    So equal errors of two engines do not mean that the request is the cause.
    """
    return MeshError(ErrorKind.INTERNAL, INTERNAL_MESSAGE, is_reported=True)


def refusal(details: str, constraint: OutputConstraint | None, param: str) -> MeshError:
    """The error for a request that the engine does not accept."""
    if _TOO_LONG.search(details):
        return MeshError(ErrorKind.CONTEXT_TOO_LONG, f"{param} is too long: {details}", param=param)
    named = _PARAMETER.search(details) or _LEADING.match(details)
    if named:
        param = _field(named[1], constraint, param)
        details = _PARAMETER.sub("", details)
    elif constraint is not None and _UNKNOWN_ID not in details:
        param = constraint.field
    details = " ".join(details.split())
    message = details if details.startswith(param) else f"{param} is not accepted: {details}"
    return MeshError(ErrorKind.INVALID_REQUEST, message, param=param, is_reported=True)


def _field(name: str, constraint: OutputConstraint | None, prompt: str) -> str:
    """What Weir's protocol calls a field of the engine's; `prompt` is the name of the prompt."""
    name = name.removeprefix("sampling_params.")
    if name in _PROMPTS:
        return prompt
    if constraint is not None and name == constraint.form:
        return constraint.field
    return _FIELDS.get(name, name)
