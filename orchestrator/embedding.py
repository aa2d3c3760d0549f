"""Embeds inputs: the tokenizer encodes all of them, replicas compute the vectors in batches."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from mesh.errors import ErrorKind, MeshError, context_too_long_message, invalid
from mesh.protocol.model_kind import ModelKind
from orchestrator.admission.validation import check_vocabulary, with_context_length
from orchestrator.clients.tokenizer import PLAIN, EncodedText, TextOptions, TokenizerClient
from orchestrator.generation import ModelInfo
from orchestrator.routing.backends.backend import TokenPair
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

GROUP_TEXTS = 64
"""Maximum texts of one call to the tokenizer, as the proto file states."""

GROUP_CHARACTERS = 1 << 18
"""Maximum characters of one call to the tokenizer, unless it has one text."""

MAX_TRIES = 2
"""Replicas that are tried for one batch."""

_INPUT = re.compile(r"(?:inputs|texts)\[(\d+)\]")
"""Path of an input in the errors of an engine and of the tokenizer."""

FieldOf = Callable[[int], str]
"""The name, in the request, of the input with this number."""

_RETRIABLE = frozenset({ErrorKind.UNAVAILABLE, ErrorKind.INTERNAL, ErrorKind.OVERLOADED})

Input = str | Sequence[int]


class Batch(NamedTuple):
    """Consecutive inputs, for one call to a replica."""

    first: int
    """Number of the first input in its request, for error messages."""
    encoded: Sequence[EncodedText]

    @property
    def inputs(self) -> list[Sequence[int]]:
        """The token ids of each input."""
        return [each.token_ids for each in self.encoded]

    @property
    def num_tokens(self) -> int:
        return sum(len(each.token_ids) for each in self.encoded)


def check_inputs(inputs: Sequence[Input]) -> None:
    """Raises MeshError (INVALID_REQUEST) for too few, too many or empty inputs."""
    if not 1 <= len(inputs) <= MAX_INPUTS:
        raise invalid("input", f"input must have 1 to {MAX_INPUTS} texts, given {len(inputs)}")
    for number, each in enumerate(inputs):
        if not each:
            raise invalid(f"input[{number}]", f"input[{number}] must not be empty")


def input_field(number: int) -> str:
    """The name of an input of an EmbedRequest."""
    return f"input[{number}]"


async def encode_inputs(
    inputs: Sequence[Input],
    model: ModelInfo,
    tokenizer: TokenizerClient,
    options: TextOptions = PLAIN,
    field: str = "input",
    total: TotalTokens | None = None,
) -> list[EncodedText]:
    """The token ids of all checked inputs; `total` counts those of several calls.

    `field` is the field of the request that has them.

    Raises MeshError for an input that is too long, or for too many tokens, before it encodes the
    inputs that follow.
    """
    options = limited(options, model)
    total = total or TotalTokens()
    encoded: list[EncodedText] = []
    for numbers in _groups(inputs):
        group = [inputs[number] for number in numbers]
        texts = [each for each in group if isinstance(each, str)]
        fields = [f"{field}[{n}]" for n in numbers if isinstance(inputs[n], str)]
        found = iter(await encode_texts(texts, (), fields, tokenizer, model, options))
        for each in group:
            encoded.append(next(found) if isinstance(each, str) else _cut(each, options))
            check_length(f"{field}[{len(encoded) - 1}]", encoded[-1], options, model)
        total.add(encoded[numbers[0] :])
    return encoded


async def encode_texts(
    texts: Sequence[str],
    second_texts: Sequence[str],
    fields: Sequence[str],
    tokenizer: TokenizerClient,
    model: ModelInfo,
    options: TextOptions,
) -> Sequence[EncodedText]:
    """One call to the tokenizer, without texts none. Raises MeshError with one of `fields`."""
    if not texts:
        return []
    try:
        encoded = await tokenizer.encode_texts(texts, second_texts, options)
    except MeshError as error:
        renamed = _renamed(error, fields.__getitem__)
        if options.max_tokens < model.context_length:
            raise renamed from error
        raise with_context_length(renamed, model) from error
    check_vocabulary(encoded.vocabulary_sha256, model)
    return encoded.texts


class TotalTokens:
    """Limits the tokens of a request."""

    def __init__(self) -> None:
        self._num_tokens = 0
        self._num_inputs = 0

    def add(self, encoded: Sequence[EncodedText]) -> None:
        """Count further inputs. Raises MeshError beyond `MAX_TOKENS`."""
        self._num_tokens += sum(len(each.token_ids) for each in encoded)
        self._num_inputs += len(encoded)
        if self._num_tokens > MAX_TOKENS:
            raise invalid(
                "input",
                f"input must have at most {MAX_TOKENS} tokens in all texts together, "
                f"given {self._num_tokens} in the first {self._num_inputs}",
            )


def limited(options: TextOptions, model: ModelInfo) -> TextOptions:
    """With a limit of tokens: the context length by default. Raises MeshError for a higher one."""
    if options.max_tokens > model.context_length:
        raise invalid(
            "max_tokens",
            f"max_tokens must be at most the model's context length, {model.context_length}, "
            f"given {options.max_tokens}",
        )
    return options._replace(max_tokens=options.max_tokens or model.context_length)


def _groups(inputs: Sequence[Input]) -> Iterator[range]:
    """Numbers of consecutive inputs that are encoded in one call."""
    begin = num_characters = 0
    for number, each in enumerate(inputs):
        length = len(each) if isinstance(each, str) else 0
        is_full = number - begin == GROUP_TEXTS or num_characters + length > GROUP_CHARACTERS
        if number > begin and is_full:
            yield range(begin, number)
            begin, num_characters = number, 0
        num_characters += length
    yield range(begin, len(inputs))


def _cut(token_ids: Sequence[int], options: TextOptions) -> EncodedText:
    kept = token_ids[: options.max_tokens] if options.truncate else token_ids
    return EncodedText(kept, len(kept))


def split_batches(encoded: Sequence[EncodedText]) -> Iterator[Batch]:
    """Splits the inputs of a request, in order, into batches."""
    inputs: list[EncodedText] = []
    num_tokens = 0
    for number, each in enumerate(encoded):
        num_tokens += len(each.token_ids)
        if inputs and (len(inputs) == BATCH_INPUTS or num_tokens > BATCH_TOKENS):
            yield Batch(number - len(inputs), inputs)
            inputs, num_tokens = [], len(each.token_ids)
        inputs.append(each)
    if inputs:
        yield Batch(len(encoded) - len(inputs), inputs)


async def embed_batch(
    batch: Batch, model: ModelInfo, replicas: Replicas, field_of: FieldOf = input_field
) -> Sequence[Sequence[float]]:
    """The vectors of one batch, in order, from any replica; of a cross-encoder the scores.

    Raises MeshError: INVALID_REQUEST if engines fail it alike, as for a generation: see
    `FailuresAlone`.
    """
    try:
        return await _embed(batch, model, replicas)
    except MeshError as error:
        raise _renamed(error, lambda number: field_of(batch.first + number)) from error


def _renamed(error: MeshError, field_of: FieldOf) -> MeshError:
    """The error of a call, which counts the inputs of that call."""
    found = _INPUT.fullmatch(error.param or "")
    return error.renamed(field_of(int(found[1]))) if found else error


async def _compute(batch: Batch, model: ModelInfo, replica: Replica) -> Sequence[Sequence[float]]:
    if model.kind is not ModelKind.SCORE:
        return await replica.embed(batch.inputs, model.model_sha256)
    pairs = [TokenPair(*each) for each in batch.encoded]
    return [[score] for score in await replica.score(pairs, model.model_sha256)]


async def _embed(batch: Batch, model: ModelInfo, replicas: Replicas) -> Sequence[Sequence[float]]:
    tried: list[Replica] = []
    alone = FailuresAlone()

    def ready() -> list[Replica]:
        return [replica for replica in replicas.ready if replica.serves(model)]

    await replicas.wait_ready(model.name, lambda: bool(ready()))
    while True:
        untried = [replica for replica in ready() if replica not in tried]
        replica = replicas.pick(model, batch.inputs[0], tried if untried else (), caches=False)
        try:
            with Lease(replica, batch.num_tokens):
                vectors = await _compute(batch, model, replica)
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


def check_length(field: str, encoded: EncodedText, options: TextOptions, model: ModelInfo) -> None:
    """Raises MeshError if an input has no tokens or more than `options` allow."""
    num_tokens = len(encoded.token_ids)
    if num_tokens > options.max_tokens:
        given = f"{field} resulted in {num_tokens} tokens. Please reduce its length."
        message = context_too_long_message(options.max_tokens, given)
        if options.max_tokens < model.context_length:
            message = f"{field} must have at most {options.max_tokens} tokens, given {num_tokens}"
        raise MeshError(ErrorKind.CONTEXT_TOO_LONG, message, param=field)
    if not num_tokens:
        # A tokenizer without special tokens can encode a text as no tokens at all.
        raise invalid(field, f"{field} must have at least 1 token, given 0")
