"""The events of a streamed completion as chunks of tokens, and responses as errors."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from mesh.errors import ErrorKind, MeshError
from mesh.protocol.constraints import OutputConstraint
from mesh.protocol.finish import FinishReason, GenerationFinish
from mesh.protocol.logprobs import TokenLogprob
from mesh.protocol.tokens import TokenChunk
from mesh.protocol.usage import Usage
from orchestrator.routing.backends.backend import GenerateCall
from orchestrator.routing.backends.vllm_grpc.errors import RETRY_SECONDS, failed, refusal
from orchestrator.routing.backends.vllm_grpc.response import given_up, most_likely

logger = logging.getLogger("orchestrator.routing.vllm")

_REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}
_TOKEN = "token_id:"
_DATA = "data: "
_DONE = "[DONE]"
MAX_ERROR_BYTES = 16 * 1024
"""Limit of the body of a response with an error; of a longer one the status counts alone."""


class EventReader:
    """Converts the lines of one stream of events, in order."""

    def __init__(self, call: GenerateCall) -> None:
        self._call = call
        self._num_tokens = 0
        self._reason: FinishReason | None = None
        self._cached_tokens = 0

    def read(self, line: str) -> TokenChunk | None:
        """The chunk of a line; None if it has none. Raises MeshError for an error event."""
        if not line.startswith(_DATA):
            return None
        data = line.removeprefix(_DATA)
        if data == _DONE:
            return self._finish()
        try:
            return self._event(json.loads(data))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            message = "the engine sent an event that cannot be read"
            raise MeshError(ErrorKind.INTERNAL, message, is_reported=True) from error

    def _event(self, event: dict[str, Any]) -> TokenChunk | None:
        if "error" in event:
            error = event["error"]
            code = error.get("code")
            status = code if isinstance(code, int) else 500
            raise error_by_status(
                status,
                str(error.get("message")),
                error.get("param"),
                self._call.sampling.constraint,
            )
        if usage := event.get("usage"):
            details = usage.get("prompt_tokens_details") or {}
            self._cached_tokens = details.get("cached_tokens") or 0
        if not event["choices"]:
            return None
        [choice] = event["choices"]
        if reason := choice.get("finish_reason"):
            self._reason = _REASONS.get(reason)
            if self._reason is None:
                raise given_up(reason)
        token_ids: list[int] | None = choice.get("token_ids")
        if not token_ids:
            if choice.get("text") and token_ids is None:
                message = "the engine returns no token ids; it is too old a version of vLLM"
                raise MeshError(ErrorKind.UNIMPLEMENTED, message)
            return None
        self._num_tokens += len(token_ids)
        wanted = self._call.sampling.num_logprobs
        if wanted is None:
            return TokenChunk(token_ids)
        return TokenChunk(token_ids, _logprobs(choice["logprobs"], token_ids, wanted))

    def _finish(self) -> TokenChunk | None:
        if self._reason is None:
            return None
        prompt_tokens = self._call.num_prompt_tokens
        usage = Usage(
            prompt_tokens,
            self._call.num_resumed_tokens + self._num_tokens,
            min(self._cached_tokens, prompt_tokens),
        )
        return TokenChunk((), finish=GenerationFinish(self._reason, usage))


def prompt_logprobs(response: dict[str, Any], call: GenerateCall) -> Sequence[TokenLogprob]:
    """One for each token of the prompt but the first."""
    wanted = call.sampling.num_prompt_logprobs or 0
    [choice] = response["choices"]
    entries: list[Mapping[str, Any]] = choice["prompt_logprobs"][1:]
    logprobs = []
    for token_id, entry in zip(call.token_ids[1:], entries, strict=True):
        values = [(int(other), value["logprob"]) for other, value in entry.items()]
        own = entry[str(token_id)]["logprob"]
        logprobs.append(TokenLogprob(token_id, own, most_likely(values, wanted)))
    return logprobs


def error_of(
    response: httpx.Response, body: bytes, constraint: OutputConstraint | None
) -> MeshError:
    """The error of a response with another status than 200."""
    if response.status_code == 404 and _is_unknown_path(body):
        message = "model does not generate text: its engine serves no completions"
        return MeshError(ErrorKind.INVALID_REQUEST, message, param="model", is_reported=True)
    details, param = _error_text(response.status_code, body)
    error = error_by_status(response.status_code, details, param, constraint)
    if error.kind is ErrorKind.UNAVAILABLE and "retry-after" in response.headers:
        error = _full()
    after = response.headers.get("retry-after", "")
    if error.kind is ErrorKind.OVERLOADED and after.isdecimal():
        error.retry_after = float(after)
    return error


def error_by_status(
    status: int, details: str, param: str | None, constraint: OutputConstraint | None
) -> MeshError:
    """The error for a status of HTTP, which an error event has as well."""
    match status:
        case 400 | 422:
            if param in ("input_tokens", "input_text"):
                param = None
            return refusal(
                details if param is None else f"{details} (parameter={param}, value=)",
                constraint,
                "prompt",
            )
        case 429:
            return _full()
        case 503 if "busy" in details:
            return _full()
        case 500 if "EngineCore" not in details and "EngineDead" not in details:
            logger.info("call failed", extra={"status": status, "error": details})
            return failed()
        case 501 | 405:
            return MeshError(ErrorKind.UNIMPLEMENTED, "the engine does not offer this")
        case _:
            return MeshError(ErrorKind.UNAVAILABLE, f"the engine answered with status {status}")


def _is_unknown_path(body: bytes) -> bool:
    """Whether a 404 is about the path, as of an engine for embeddings, and not about the model."""
    try:
        return bool(json.loads(body) == {"detail": "Not Found"})
    except ValueError:
        return False


def _full() -> MeshError:
    return MeshError(ErrorKind.OVERLOADED, "the engine's queue is full", retry_after=RETRY_SECONDS)


def _error_text(status: int, body: bytes) -> tuple[str, str | None]:
    try:
        error = json.loads(body)["error"]
        return str(error["message"]), error.get("param")
    except (ValueError, LookupError, TypeError, AttributeError):
        return f"status {status}", None


def _logprobs(
    message: Mapping[str, Any], token_ids: Sequence[int], wanted: int
) -> list[TokenLogprob]:
    values = message["token_logprobs"]
    tops = message.get("top_logprobs") or [{}] * len(values)
    return [
        TokenLogprob(token_id, value, _top(top or {}, wanted))
        for token_id, value, top in zip(token_ids, values, tops, strict=True)
    ]


def _top(entries: Mapping[str, float], wanted: int) -> tuple[tuple[int, float], ...]:
    named = [(int(name.removeprefix(_TOKEN)), value) for name, value in entries.items()]
    return most_likely(named, wanted)
