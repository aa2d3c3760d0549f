"""Embeds inputs: the tokenizer encodes them, any replica computes the vectors, in batches."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from mesh.errors import ErrorKind, MeshError, invalid
from orchestrator.admission.request_table import ActiveRequest, RequestState
from orchestrator.admission.validation import check_vocabulary
from orchestrator.clients.tokenizer import TokenizerClient
from orchestrator.generation import ModelInfo
from orchestrator.observability.request_account import EMBEDDINGS
from orchestrator.routing.replica import Replica
from orchestrator.routing.replicas import Lease, Replicas

MAX_INPUTS = 2048
"""Maximum inputs of one request, as in OpenAI's API."""

BATCH_INPUTS = 64
"""Maximum inputs of one call to a replica, as the proto file states."""

ENCODED_AT_ONCE = 8
"""Maximum concurrent calls to the tokenizer for one request."""

MAX_TRIES = 2
"""Replicas that are tried for one batch."""

_RETRIABLE = frozenset({ErrorKind.UNAVAILABLE, ErrorKind.INTERNAL, ErrorKind.OVERLOADED})

Input = str | Sequence[int]


class EmbeddedBatch(NamedTuple):
    """The vectors of one batch, in order, and the number of its tokens."""

    vectors: Sequence[Sequence[float]]
    prompt_tokens: int


def check_inputs(inputs: Sequence[Input]) -> None:
    """Raises MeshError (INVALID_REQUEST) for too few, too many or empty inputs."""
    if not 1 <= len(inputs) <= MAX_INPUTS:
        raise invalid("input", f"input must have 1 to {MAX_INPUTS} texts, given {len(inputs)}")
    for number, each in enumerate(inputs):
        if not each:
            raise invalid("input", f"input[{number}] must not be empty")


async def embed_batch(
    inputs: Sequence[Input],
    first: int,
    model: ModelInfo,
    tokenizer: TokenizerClient,
    replicas: Replicas,
    active: ActiveRequest,
) -> EmbeddedBatch:
    """Embeds at most `BATCH_INPUTS` checked inputs. Raises MeshError.

    `first` is the number of the first input in its request, for error messages.
    """
    async with active.cancellable():
        active.state = RequestState.ENCODING
        encoded = await _encode(inputs, tokenizer, model)
        for number, token_ids in enumerate(encoded, first):
            _check_length(number, token_ids, model)
        num_tokens = sum(map(len, encoded))
        active.account.encoded(num_tokens, EMBEDDINGS)
        active.state = RequestState.WAITING
        return EmbeddedBatch(await _embed(encoded, num_tokens, model, replicas), num_tokens)


async def _encode(
    batch: Sequence[Input], tokenizer: TokenizerClient, model: ModelInfo
) -> list[Sequence[int]]:
    encoded: list[Sequence[int]] = []

    async def encode(each: Input) -> Sequence[int]:
        if not isinstance(each, str):
            return each
        encoded = await tokenizer.encode_text(each, "input")
        check_vocabulary(encoded.vocabulary_sha256, model)
        return encoded.token_ids

    for begin in range(0, len(batch), ENCODED_AT_ONCE):
        encoded += await asyncio.gather(*map(encode, batch[begin : begin + ENCODED_AT_ONCE]))
    return encoded


async def _embed(
    encoded: Sequence[Sequence[int]], num_tokens: int, model: ModelInfo, replicas: Replicas
) -> Sequence[Sequence[float]]:
    tried: list[Replica] = []
    while True:
        replica = replicas.pick(model, encoded[0], tried)
        try:
            with Lease(replica, num_tokens):
                return await replica.embed(encoded, model.model_sha256)
        except MeshError as error:
            tried.append(replica)
            if error.kind not in _RETRIABLE or len(tried) >= MAX_TRIES:
                raise
            if error.kind is ErrorKind.UNAVAILABLE:
                replica.suspect()
            if not any(other not in tried for other in replicas.ready):
                raise


def _check_length(number: int, token_ids: Sequence[int], model: ModelInfo) -> None:
    if len(token_ids) > model.context_length:
        raise MeshError(
            ErrorKind.CONTEXT_TOO_LONG,
            f"input[{number}] must be at most the context of model {model.name!r}, "
            f"{model.context_length} tokens, given {len(token_ids)}",
            param="input",
        )
    if not token_ids:
        # A tokenizer without special tokens can encode a text as no tokens at all.
        raise invalid("input", f"input[{number}] must have at least 1 token, given 0")
