"""The gateway's calls to the orchestrator and the events that come back; shared values: mesh."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from mesh.protocol.chat import ToolChoice
from mesh.protocol.deltas import Delta
from mesh.protocol.finish import GenerationFinish, GenerationStarted
from mesh.protocol.prompt import Prompt
from mesh.protocol.sampling_params import SamplingParams


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


class Citation(NamedTuple):
    """A sentence of a summary and what it cites, as offsets: [first, behind the last)."""

    number: int | None
    """The result's position; None where the sentence cites none."""
    sentence: tuple[int, int]
    """In the summary."""
    span: tuple[int, int] | None
    """In the result's snippet; None where that does not support the sentence."""


@dataclass(frozen=True, slots=True)
class SummaryFinish(GenerationFinish):
    """The end of a search's summary."""

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


Event: TypeAlias = GenerationStarted | SearchResults | Delta | GenerationFinish
"""First GenerationStarted or SearchResults, then deltas, last exactly one finish."""
