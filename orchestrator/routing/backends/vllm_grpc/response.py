"""vLLM's responses as chunks of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mesh.errors import ErrorKind, MeshError
from mesh.protocol.finish import FinishReason, GenerationFinish
from mesh.protocol.logprobs import TokenLogprob
from mesh.protocol.tokens import TokenChunk
from mesh.protocol.usage import Usage
from orchestrator.routing.backends.backend import GenerateCall
from orchestrator.routing.backends.vllm_grpc.errors import failed

_REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}


class ResponseReader:
    """Converts the responses of one streamed call, in order.

    Chunks are deltas, and their counts are as well. The last message repeats the last delta.
    """

    def __init__(self, call: GenerateCall) -> None:
        self._call = call
        self._num_tokens = 0
        self._cached_tokens = 0

    def read(self, response: Any) -> TokenChunk:
        """The chunk of a response. Raises MeshError if the engine has given up the request."""
        try:
            if response.WhichOneof("response") == "complete":
                return self._read_complete(response.complete)
            return self._read_chunk(response.chunk)
        except ValueError as error:  # lists of different lengths
            message = "the engine sent a response that cannot be read"
            raise MeshError(ErrorKind.INTERNAL, message, is_reported=True) from error

    def _read_chunk(self, message: Any) -> TokenChunk:
        sampling = self._call.sampling
        token_ids = message.token_ids
        self._num_tokens += len(token_ids)
        self._cached_tokens = max(self._cached_tokens, message.cached_tokens)
        if sampling.num_logprobs is None and sampling.num_prompt_logprobs is None:
            return TokenChunk(token_ids)
        return TokenChunk(
            token_ids,
            output_logprobs(message.output_logprobs, sampling.num_logprobs),
            input_logprobs(message.input_logprobs, sampling.num_prompt_logprobs),
        )

    def _read_complete(self, message: Any) -> TokenChunk:
        reason = _REASONS.get(message.finish_reason)
        if reason is None:
            raise given_up(message.finish_reason)
        # An engine that sends everything at once has sent no chunk before.
        unsent = [] if self._num_tokens else list(message.output_ids)
        resumed = self._call.num_resumed_tokens
        prompt_tokens = self._call.num_prompt_tokens
        cached = max(self._cached_tokens, message.cached_tokens)
        usage = Usage(
            prompt_tokens,
            resumed + self._num_tokens + len(unsent),
            min(cached, prompt_tokens),
        )
        finish = GenerationFinish(reason, usage)
        if not unsent:
            return TokenChunk((), finish=finish)
        sampling = self._call.sampling
        return TokenChunk(
            unsent,
            output_logprobs(message.output_logprobs, sampling.num_logprobs),
            input_logprobs(message.input_logprobs, sampling.num_prompt_logprobs),
            finish,
        )


def given_up(reason: str) -> MeshError:
    """The error for a finish that no limit and no token of the request has caused."""
    if reason == "abort":  # by a drain, or by another client of the engine
        return MeshError(ErrorKind.UNAVAILABLE, "the engine aborted the request")
    return failed()


def output_logprobs(message: Any, wanted: int | None) -> Sequence[TokenLogprob]:
    """One for each token; `wanted` alternatives, None: none at all."""
    if wanted is None:
        return ()
    tops = message.top_logprobs or [None] * len(message.token_ids)
    return [
        TokenLogprob(token_id, logprob, _top(top, wanted))
        for token_id, logprob, top in zip(
            message.token_ids, message.token_logprobs, tops, strict=True
        )
    ]


def input_logprobs(message: Any, wanted: int | None) -> Sequence[TokenLogprob]:
    """One for each token of the prompt but the first, which has none."""
    if wanted is None or not message.token_ids:
        return ()
    tops = message.top_logprobs or [None] * len(message.token_ids)
    logprobs = [
        TokenLogprob(token_id, logprob.value, _top(top, wanted))
        for token_id, logprob, top in zip(
            message.token_ids, message.token_logprobs, tops, strict=True
        )
    ]
    return logprobs[1:]


def most_likely(
    alternatives: Sequence[tuple[int, float]], wanted: int
) -> tuple[tuple[int, float], ...]:
    """The `wanted` most likely alternatives, most likely first."""
    return tuple(sorted(alternatives, key=lambda each: -each[1])[:wanted])


def _top(message: Any, wanted: int) -> tuple[tuple[int, float], ...]:
    if message is None or not wanted:
        return ()
    return most_likely(list(zip(message.token_ids, message.values, strict=True)), wanted)
