"""The values that pass between the pipeline and its clients; no protobuf, no behaviour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple


class FinishReason(StrEnum):
    """Why a generation ended."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


class ModelInfo(NamedTuple):
    """What a replica serves."""

    name: str
    context_length: int
    eos_token_ids: frozenset[int] = frozenset()


class Constraint(NamedTuple):
    """The form that the text must have; the engine checks it and keeps to it."""

    form: str
    """The name of a field of OutputConstraint."""
    text: str = ""
    """The schema, the expression or the grammar; empty for any JSON object."""


class ToolChoice(NamedTuple):
    """Which tools the model calls; all at their defaults: whichever it likes."""

    required: bool = False
    name: str = ""
    single: bool = False


_NO_BIAS: Mapping[int, float] = MappingProxyType({})


class Sampling(NamedTuple):
    """How to draw; a field that is None is left to the served model. Bounds: `validation`."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    num_logprobs: int | None = None
    num_prompt_logprobs: int | None = None
    logit_bias: Mapping[int, float] = _NO_BIAS
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    constraint: Constraint | None = None

    def ends(self, model: ModelInfo) -> frozenset[int]:
        """Ids that end the generation; the one that does is no part of the text."""
        eos = model.eos_token_ids
        if self.ignore_eos and self.constraint is None:
            eos = frozenset()
        return eos.union(self.stop_token_ids)


class Usage(NamedTuple):
    """Tokens of one request."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


class TokenLogprob(NamedTuple):
    """A token, the log of its probability, and the likeliest alternatives."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Finish(NamedTuple):
    """The end of a generation."""

    reason: FinishReason
    usage: Usage


class TokenChunk(NamedTuple):
    """Tokens that were ready; `logprobs` is empty or as long as `token_ids`.

    Of a stream the first chunk may hold none: it says that the request is accepted.
    """

    token_ids: Sequence[int]
    logprobs: Sequence[TokenLogprob] = ()
    prompt_logprobs: Sequence[TokenLogprob] = ()
    """Of all the prompt's ids but the first, once, where they were asked for."""
    finish: Finish | None = None
    """In the last chunk of a stream, and only there."""


class Started(NamedTuple):
    """A replica has accepted the request."""

    model: str
    prompt_tokens: int


class DeltaLogprob(NamedTuple):
    """A token as text and bytes, and how likely it was."""

    token: str
    token_bytes: bytes
    logprob: float | None
    """None for the first token of a prompt."""
    top: tuple[DeltaLogprob, ...] = ()


class ToolCallDelta(NamedTuple):
    """A piece of a call; only its first one has the id and the name."""

    number: int
    """Which call of the answer, counted from 0."""
    id: str = ""
    name: str = ""
    arguments: str = ""


class Delta(NamedTuple):
    """A piece of text, of thinking or of calls, and how many tokens it took."""

    text: str
    num_tokens: int
    logprobs: Sequence[DeltaLogprob] = ()
    reasoning: str = ""
    tool_calls: Sequence[ToolCallDelta] = ()


class Progress(NamedTuple):
    """All of a generation that became known at once; at least one, and in this order."""

    started: Started | None = None
    delta: Delta | None = None
    finish: Finish | None = None
