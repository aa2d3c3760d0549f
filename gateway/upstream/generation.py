"""What is asked of the orchestrator and what comes back, in the gateway's own types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

_NO_BIAS: Mapping[int, float] = MappingProxyType({})


class Constraint(NamedTuple):
    """The form of the text: json_schema, with the schema as `text`, or json_object."""

    form: str
    text: str = ""


class SamplingParams(NamedTuple):
    """How to draw; None takes the default of the served model."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[int, float] = _NO_BIAS
    ignore_eos: bool = False
    min_tokens: int = 0
    num_logprobs: int | None = None
    num_prompt_logprobs: int | None = None
    constraint: Constraint | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of a conversation; `tool_calls_json` is a JSON array in OpenAI's format."""

    role: str
    content: str
    name: str = ""
    tool_calls_json: str = ""
    tool_call_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatPrompt:
    """A conversation for the model's own template."""

    messages: tuple[Message, ...]
    tools_json: str = ""
    continue_final_message: bool = False
    template_kwargs_json: str = ""


class TokenIds(NamedTuple):
    """A prompt as token ids."""

    ids: tuple[int, ...]


class ToolChoice(NamedTuple):
    """Which tools the model calls; all at their defaults: whichever it likes."""

    required: bool = False
    name: str = ""
    single: bool = False


Prompt: TypeAlias = ChatPrompt | TokenIds | str


class Generation(NamedTuple):
    """A generation to be asked for; `model` "" takes the only one."""

    model: str
    prompt: Prompt
    sampling: SamplingParams
    stop: tuple[str, ...] = ()
    echo: bool = False
    tool_choice: ToolChoice | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """A search and its summary to be asked for."""

    query: str
    num_results: int
    max_tokens: int
    model: str = ""
    safe_search: bool = False


class Started(NamedTuple):
    """The request is accepted."""

    model: str
    prompt_tokens: int


class TokenLogprob(NamedTuple):
    """A token, how likely it was, and the likeliest alternatives."""

    token: str
    token_bytes: bytes
    logprob: float | None
    """None for the first token of an echoed prompt."""
    top: tuple[TokenLogprob, ...]


class ToolCallDelta(NamedTuple):
    """A piece of a call; only its first one has the id and the name."""

    number: int
    """Which call of the answer, counted from 0."""
    id: str
    name: str
    arguments: str


class Delta(NamedTuple):
    """More text, thinking or calls, and how many tokens that took."""

    text: str
    num_tokens: int
    logprobs: tuple[TokenLogprob, ...]
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()


class Usage(NamedTuple):
    """What it took."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


class Citation(NamedTuple):
    """A sentence of a summary and what it cites, as offsets: [first, behind the last)."""

    number: int | None
    """The result's position; None where the sentence cites none."""
    sentence: tuple[int, int]
    """In the summary."""
    span: tuple[int, int] | None
    """In the result's snippet; None where that does not support the sentence."""


class Finish(NamedTuple):
    """The end: stop, length or abort. Citations are a search's."""

    reason: str
    usage: Usage
    citations: tuple[int, ...] = ()
    citation_details: tuple[Citation, ...] = ()


class SearchResult(NamedTuple):
    """A document that was found; citations name its position."""

    position: int
    title: str
    url: str
    snippet: str
    score: float


class SearchResults(NamedTuple):
    """What was found, best first."""

    query: str
    results: tuple[SearchResult, ...]


class Embedded(NamedTuple):
    """The vectors of the next inputs, and the tokens that these have."""

    model: str
    vectors: tuple[Sequence[float], ...]
    prompt_tokens: int


class ServedModel(NamedTuple):
    """A model that can be asked for."""

    name: str
    context_length: int
    created: int


Event: TypeAlias = Started | SearchResults | Delta | Finish
"""First Started or SearchResults, then deltas, last exactly one Finish."""

ABORT = "abort"
"""The finish reason of what an operator or a drain ended."""
