"""Embeds inputs: the tokenizer encodes all of them, replicas compute the vectors in batches."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mesh.errors import ErrorKind, MeshError, context_too_long_message, invalid
from orchestrator.admission.validation import check_vocabulary, with_context_length
from orchestrator.clients.tokenizer import TokenizerClient
from orchestrator.generation import ModelInfo
from orchestrator.routing.agreement import can_replace
from orchestrator.routing.failures_alone import FailuresAlone, is_alone
from orchestrator.routing.replica import Replica
from orchestrator.routing.replicas import Lease, Replicas

MAX_INPUTS = 2048
"""Maximum inputs of one request, as in OpenAI's API."""

MAX_TOKENS = 300_000
"""Maximum tokens of all inputs of one request, as in OpenAI's API."""

BATCH_INPUTS = 64
"""Maximum inputs of one call to a replica, as the proto file states."""

BATCH_TOKENS = 16_384
"""Maximum tokens of one call to a replica, unless it has one input; requests take turns there."""

ENCODED_AT_ONCE = 8
"""Maximum concurrent calls to the tokenizer for one request."""

MAX_TRIES = 2
"""Replicas that are tried for one batch."""

_ENGINE_INPUT = re.compile(r"inputs\[(\d+)\]")
"""Path of an input in the engine's errors."""

_RETRIABLE = frozenset({ErrorKind.UNAVAILABLE, ErrorKind.INTERNAL, ErrorKind.OVERLOADED})

Input = str | Sequence[int]


class Batch(NamedTuple):
    """Token ids of consecutive inputs, for one call to a replica."""

    first: int
    """Number of the first input in its request, for error messages."""
    inputs: Sequence[Sequence[int]]

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.inputs))


def check_inputs(inputs: Sequence[Input]) -> None:
    """Raises MeshError (INVALID_REQUEST) for too few, too many or empty inputs."""
    if not 1 <= len(inputs) <= MAX_INPUTS:
        raise invalid("input", f"input must have 1 to {MAX_INPUTS} texts, given {len(inputs)}")
    for number, each in enumerate(inputs):
        if not each:
            raise invalid(f"input[{number}]", f"input[{number}] must not be empty")


async def encode_inputs(
    inputs: Sequence[Input], model: ModelInfo, tokenizer: TokenizerClient
) -> Sequence[Sequence[int]]:
    """The token ids of all checked inputs.

    Raises MeshError for an input that is too long, or for too many tokens, before it encodes the
    inputs that follow.
    """
    encoded: list[Sequence[int]] = []
    num_tokens = 0
    for begin in range(0, len(inputs), ENCODED_AT_ONCE):
        numbers = range(begin, min(begin + ENCODED_AT_ONCE, len(inputs)))
        some = await asyncio.gather(*(_encode(n, inputs[n], model, tokenizer) for n in numbers))
        num_tokens += sum(map(len, some))
        encoded += some
        if num_tokens > MAX_TOKENS:
            raise invalid(
                "input",
                f"input must have at most {MAX_TOKENS} tokens in all texts together, "
                f"given {num_tokens} in the first {len(encoded)}",
            )
    return encoded


async def _encode(
    number: int, each: Input, model: ModelInfo, tokenizer: TokenizerClient
) -> Sequence[int]:
    token_ids = each
    if isinstance(each, str):
        try:
            encoded = await tokenizer.encode_text(
                each, f"input[{number}]", max_tokens=model.context_length
            )
        except MeshError as error:
            raise with_context_length(error, model) from error
        check_vocabulary(encoded.vocabulary_sha256, model)
        token_ids = encoded.token_ids
    assert not isinstance(token_ids, str)
    _check_length(number, token_ids, model)
    return token_ids


def split_batches(encoded: Sequence[Sequence[int]]) -> Iterator[Batch]:
    """Splits the inputs of a request, in order, into batches."""
    inputs: list[Sequence[int]] = []
    num_tokens = 0
    for number, token_ids in enumerate(encoded):
        num_tokens += len(token_ids)
        if inputs and (len(inputs) == BATCH_INPUTS or num_tokens > BATCH_TOKENS):
            yield Batch(number - len(inputs), inputs)
            inputs, num_tokens = [], len(token_ids)
        inputs.append(token_ids)
    if inputs:
        yield Batch(len(encoded) - len(inputs), inputs)


async def embed_batch(
    batch: Batch, model: ModelInfo, replicas: Replicas
) -> Sequence[Sequence[float]]:
    """The vectors of one batch, in order, from any replica. Raises MeshError.

    INVALID_REQUEST if engines fail it alike, as for a generation: see `FailuresAlone`.
    """
    try:
        return await _embed(batch, model, replicas)
    except MeshError as error:
        raise _with_number(error, batch.first) from error


def _with_number(error: MeshError, first: int) -> MeshError:
    """The engine's error, whose `inputs[n]` counts within a batch that begins at `first`."""
    found = _ENGINE_INPUT.fullmatch(error.param or "")
    return error.renamed(f"input[{first + int(found[1])}]") if found else error


async def _embed(batch: Batch, model: ModelInfo, replicas: Replicas) -> Sequence[Sequence[float]]:
    tried: list[Replica] = []
    alone = FailuresAlone()

    def ready() -> list[Replica]:
        return [replica for replica in replicas.ready if can_replace(replica.model, model)]

    await replicas.wait_ready(model.name, lambda: bool(ready()))
    while True:
        untried = [replica for replica in ready() if replica not in tried]
        replica = replicas.pick(model, batch.inputs[0], tried if untried else (), caches=False)
        try:
            with Lease(replica, batch.num_tokens):
                vectors = await replica.embed(batch.inputs, model.model_sha256)
        except MeshError as error:
            tried.append(replica)
            if is_alone(error):
                alone.add(replica, error)
            if error.kind not in _RETRIABLE or len(tried) >= MAX_TRIES:
                raise
            again = any(each not in tried for each in ready())
            if error.kind is ErrorKind.UNAVAILABLE:
                replica.suspect()
                # The only replica is tried again, if it serves, or a new one.
                again = again or await replicas.wait_ready(model.name, lambda: bool(ready()))
            if not again:
                raise
            continue
        replica.circuit.success()
        alone.blame()
        return vectors


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
