"""Token ids: as a prompt, and as the chunks of a stream of generated tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mesh.protocol.finish import GenerationFinish, finish_from_proto
from mesh.protocol.logprobs import LazyLogprobs, TokenLogprob, token_logprob_from_proto
from mesh.v1 import inference_pb2


class TokenIds(NamedTuple):
    """A prompt as token ids."""

    ids: Sequence[int]


class TokenChunk(NamedTuple):
    """All tokens that were ready; `logprobs` is empty or as long as `token_ids`.

    The first chunk of a stream may have no tokens: it reports that the request is accepted.
    """

    token_ids: Sequence[int]
    logprobs: Sequence[TokenLogprob] = ()
    prompt_logprobs: Sequence[TokenLogprob] = ()
    """One for each prompt token but the first; once in a stream, where the request asks for it."""
    finish: GenerationFinish | None = None
    """Set in the last chunk of a stream only."""


def token_chunk_from_proto(
    message: inference_pb2.InferenceServiceGenerateResponse,
) -> TokenChunk:
    """Convert from protobuf. Raises ValueError for an unknown finish reason."""
    chunk = message.chunk
    finish = finish_from_proto(message.finish) if message.HasField("finish") else None
    if not (chunk.logprobs or chunk.prompt_logprobs):
        return TokenChunk(chunk.token_ids, finish=finish)
    return TokenChunk(
        chunk.token_ids,
        [token_logprob_from_proto(each) for each in chunk.logprobs],
        LazyLogprobs(chunk.prompt_logprobs),
        finish,
    )
