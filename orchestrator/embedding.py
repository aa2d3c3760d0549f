"""Embeds inputs: the tokenizer encodes them, any replica computes the vectors, in batches."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import NamedTuple

from mesh.errors import ErrorKind, MeshError, context_too_long_message, invalid
from orchestrator.admission.request_table import ActiveRequest, RequestState
from orchestrator.admission.validation import check_vocabulary, with_context_length
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

_ENGINE_INPUT = re.compile(r"inputs\[(\d+)\]")
"""Path of an input in the engine's errors."""

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
            raise invalid(f"input[{number}]", f"input[{number}] must not be empty")


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
        try:
            encoded = await _encode(inputs, first, tokenizer, model)
        except MeshError as error:
            raise with_context_length(error, model) from error
        for number, token_ids in enumerate(encoded, first):
            _check_length(number, token_ids, model)
        num_tokens = sum(map(len, encoded))
        active.account.encoded(num_tokens, EMBEDDINGS)
        active.state = RequestState.WAITING
        try:
            vectors = await _embed(encoded, num_tokens, model, replicas)
        except MeshError as error:
            raise _with_number(error, first) from error
        return EmbeddedBatch(vectors, num_tokens)


async def _encode(
    batch: Sequence[Input], first: int, tokenizer: TokenizerClient, model: ModelInfo
) -> list[Sequence[int]]:
    encoded: list[Sequence[int]] = []

    async def encode(number: int) -> Sequence[int]:
        each = batch[number]
        if not isinstance(each, str):
            return each
        encoded = await tokenizer.encode_text(each, f"input[{first + number}]")
        check_vocabulary(encoded.vocabulary_sha256, model)
        return encoded.token_ids

    for begin in range(0, len(batch), ENCODED_AT_ONCE):
        numbers = range(begin, min(begin + ENCODED_AT_ONCE, len(batch)))
        encoded += await asyncio.gather(*map(encode, numbers))
    return encoded


def _with_number(error: MeshError, first: int) -> MeshError:
    """The engine's error, whose `inputs[n]` counts within a batch that begins at `first`."""
    found = _ENGINE_INPUT.fullmatch(error.param or "")
    return error.renamed(f"input[{first + int(found[1])}]") if found else error


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
            context_too_long_message(
                model.context_length,
                f"input[{number}] resulted in {len(token_ids)} tokens. Please reduce its length.",
            ),
            param=f"input[{number}]",
        )
    if not token_ids:
        # A tokenizer without special tokens can encode a text as no tokens at all.
        raise invalid(f"input[{number}]", f"input[{number}] must have at least 1 token, given 0")
