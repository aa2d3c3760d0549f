"""The gateway's requests to the orchestrator, and the events of its responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from gateway.upstream.field_names import FieldNames
from mesh.protocol.api_request import ApiRequest
from mesh.protocol.chat import ToolChoice
from mesh.protocol.deltas import Delta
from mesh.protocol.finish import GenerationFinish, GenerationStarted
from mesh.protocol.model_kind import InputUse, ModelKind
from mesh.protocol.prompt import Prompt
from mesh.protocol.sampling_params import SamplingParams
from mesh.protocol.search import Source
from mesh.protocol.summary import Grounded, RelatedQuestions, SearchStatus, Turn
from mesh.protocol.tokens import TokenIds


class Generation(NamedTuple):
    """A generation request; an empty `model` selects the only served one."""

    model: str
    prompt: Prompt
    sampling: SamplingParams
    stop: tuple[str, ...] = ()
    echo: bool = False
    tool_choice: ToolChoice | None = None
    names: FieldNames | None = None
    """Names of the fields in errors; None: the services' own."""
    fit_max_tokens: bool = False
    """Lower `max_tokens` to the room in the context, instead of refusing the request."""
    sources: Sequence[Source] | None = None
    """What the answer is to be made of, and may cite; its finish is then a SummaryFinish."""
    api_request: ApiRequest | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """A search request."""

    query: str
    num_results: int
    max_tokens: int
    model: str = ""
    safe_search: bool = False
    grounded: Grounded | None = None
    """How the summary is bound to the results; None: the orchestrator's setting."""
    history: tuple[Turn, ...] = ()
    max_searches: int = 0
    """Most queries that the question is split into; 0: the orchestrator's default."""
    num_related: int = 0
    names: FieldNames | None = None
    """Names of the fields in errors; None: the services' own."""
    api_request: ApiRequest | None = None


def choices_of(
    generations: Sequence[Generation], response_id: str, *, stream: bool, n: int = 1
) -> list[Generation]:
    """The generations as the choices of one response, `n` for each of its prompts."""
    return [
        each._replace(api_request=ApiRequest(response_id, stream, n, number % n))
        for number, each in enumerate(generations)
    ]


class SearchResults(NamedTuple):
    """The results, best first."""

    query: str
    results: tuple[Source, ...]
    model: str = ""
    """Name of the model that writes the summary."""
    searches: tuple[str, ...] = ()
    """The queries that were searched; empty if the request does not ask for them."""


class Retrieved(NamedTuple):
    """The results of a search without a summary."""

    results: tuple[Source, ...]
    num_relevant: int
    """Number of the first results that are relevant enough for a prompt."""
    failed: bool
    """The retrieval failed, so no results do not mean that nothing matches."""


class TextLimit(NamedTuple):
    """What happens to texts that are longer than a limit."""

    max_tokens: int = 0
    """0: the model's context length."""
    truncate: bool = False
    """Cut off their ends instead of refusing them."""


class EmbeddingInputs(NamedTuple):
    """Texts or token ids to embed; an empty `model` selects the only served one."""

    model: str
    inputs: Sequence[str | TokenIds]
    names: FieldNames
    """Names of the fields in errors."""
    limit: TextLimit = TextLimit()
    prompt_name: str = ""
    """Name of the model's prompt to put before each text; empty: the one for the use."""
    use: InputUse = ""


class TextPairs(NamedTuple):
    """Pairs of texts to score; an empty `model` selects the only served one."""

    model: str
    first: Sequence[str]
    """One text, or one for each of `second`."""
    second: Sequence[str]
    names: FieldNames
    """Names of the fields in errors."""
    limit: TextLimit = TextLimit()
    is_search: bool = False
    """The first texts are queries and the second ones documents."""


class Scored(NamedTuple):
    """The scores of the next pairs, how they were made, and the number of their tokens."""

    model: str
    method: str
    scores: Sequence[float]
    prompt_tokens: int


class Embedded(NamedTuple):
    """The embeddings of the next inputs, and the number of their tokens."""

    model: str
    vectors: tuple[Sequence[float], ...]
    prompt_tokens: int


class ServedModel(NamedTuple):
    """A served model."""

    name: str
    context_length: int
    created: int
    kind: ModelKind = ModelKind.GENERATION


Event: TypeAlias = (
    GenerationStarted | SearchStatus | SearchResults | Delta | GenerationFinish | RelatedQuestions
)
"""First GenerationStarted or SearchResults, then deltas, last exactly one finish."""
