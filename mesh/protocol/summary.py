"""The summary of a search: how it is bound to the results, its citations and its finish."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from mesh.protocol.finish import REASON_TO_PROTO, GenerationFinish, reason_from_proto
from mesh.protocol.usage import usage_from_proto, usage_to_proto
from mesh.v1 import orchestrator_pb2


class Grounded(StrEnum):
    """How a summary is bound to the passages that were found."""

    QUOTE = "quote"
    """Each sentence is a whole sentence of a passage."""
    CITE = "cite"
    """The model writes the sentences, and each names a passage."""


class Turn(NamedTuple):
    """An earlier question of a conversation, and the summary that answered it."""

    query: str
    summary: str


class SearchStage(StrEnum):
    """What a search does."""

    REWRITING = "rewriting"
    """Makes the query understandable without the conversation."""
    SEARCHING = "searching"
    READING = "reading"
    """The model reads the results."""


class SearchStatus(NamedTuple):
    """A stage of a search begins."""

    stage: SearchStage
    searches: Sequence[str] = ()
    """The queries that are searched, in the stage `searching`."""


class RelatedQuestions(NamedTuple):
    """Questions that the documents can answer."""

    questions: Sequence[str]


class Span(NamedTuple):
    """A range of characters (Unicode code points) in a text; `end` is exclusive."""

    begin: int
    end: int


class Citation(NamedTuple):
    """A sentence of a summary, and one result that it cites."""

    number: int | None
    """Position of the result; None if the sentence cites none, and none supports it."""
    sentence: Span
    """Span of the sentence in the summary."""
    span: Span | None
    """Supporting span in the result's snippet; None if the result does not support it."""
    attributed: bool = False
    """The sentence cites nothing; the result was found to support it."""


@dataclass(frozen=True, slots=True)
class SummaryFinish(GenerationFinish):
    """The end of a summary, or of another answer with sources."""

    citations: Sequence[int] = ()
    """Positions of the cited and attributed results, in ascending order, without duplicates."""
    citation_details: Sequence[Citation] = ()
    """The citations of each sentence, in the order of the text."""
    nothing_found: bool = False
    """The results do not answer the query, and the summary says so."""


_GROUNDED_FROM_PROTO: dict[int, Grounded] = {
    orchestrator_pb2.GROUNDED_QUOTE: Grounded.QUOTE,
    orchestrator_pb2.GROUNDED_CITE: Grounded.CITE,
}
GROUNDED_TO_PROTO = {
    Grounded.QUOTE: orchestrator_pb2.GROUNDED_QUOTE,
    Grounded.CITE: orchestrator_pb2.GROUNDED_CITE,
}


def grounded_from_proto(number: int) -> Grounded | None:
    """Convert from protobuf; None for an unspecified or unknown value."""
    return _GROUNDED_FROM_PROTO.get(number)


def citation_to_proto(citation: Citation) -> orchestrator_pb2.CitationDetail:
    """Convert to protobuf."""
    span = citation.span
    return orchestrator_pb2.CitationDetail(
        position=citation.number or 0,
        sentence=orchestrator_pb2.TextSpan(**citation.sentence._asdict()),
        span=None if span is None else orchestrator_pb2.TextSpan(**span._asdict()),
        attributed=citation.attributed,
    )


def citation_from_proto(detail: orchestrator_pb2.CitationDetail) -> Citation:
    """Convert from protobuf."""
    sentence, span = detail.sentence, detail.span
    return Citation(
        detail.position or None,
        Span(sentence.begin, sentence.end),
        Span(span.begin, span.end) if detail.HasField("span") else None,
        detail.attributed,
    )


def summary_finish_to_proto(finish: SummaryFinish) -> orchestrator_pb2.SummarizeFinish:
    """Convert to protobuf."""
    return orchestrator_pb2.SummarizeFinish(
        reason=REASON_TO_PROTO[finish.reason],
        usage=usage_to_proto(finish.usage),
        citations=finish.citations,
        citation_details=map(citation_to_proto, finish.citation_details),
        num_resumptions=finish.num_resumptions,
        num_failovers=len(finish.failover_causes),
        failover_causes=finish.failover_causes,
        nothing_found=finish.nothing_found,
    )


def failover_causes(
    finish: orchestrator_pb2.GenerateFinish | orchestrator_pb2.SummarizeFinish,
) -> tuple[str, ...]:
    """One for each failover; an older orchestrator reports their number only."""
    return tuple(finish.failover_causes) or ("unknown",) * finish.num_failovers


def summary_finish_from_proto(finish: orchestrator_pb2.SummarizeFinish) -> SummaryFinish:
    """Convert from protobuf. Raises ValueError for an unknown reason."""
    return SummaryFinish(
        reason_from_proto(finish.reason),
        usage_from_proto(finish.usage),
        num_resumptions=finish.num_resumptions,
        failover_causes=failover_causes(finish),
        citations=tuple(finish.citations),
        citation_details=tuple(map(citation_from_proto, finish.citation_details)),
        nothing_found=finish.nothing_found,
    )


_STAGE_TO_PROTO = {
    SearchStage.REWRITING: orchestrator_pb2.SEARCH_STAGE_REWRITING,
    SearchStage.SEARCHING: orchestrator_pb2.SEARCH_STAGE_SEARCHING,
    SearchStage.READING: orchestrator_pb2.SEARCH_STAGE_READING,
}
_STAGE_FROM_PROTO: dict[int, SearchStage] = {
    number: stage for stage, number in _STAGE_TO_PROTO.items()
}


def status_to_proto(status: SearchStatus) -> orchestrator_pb2.SearchStatus:
    """Convert to protobuf."""
    return orchestrator_pb2.SearchStatus(
        stage=_STAGE_TO_PROTO[status.stage], searches=status.searches
    )


def status_from_proto(status: orchestrator_pb2.SearchStatus) -> SearchStatus:
    """Convert from protobuf. Raises ValueError for an unknown stage."""
    stage = _STAGE_FROM_PROTO.get(status.stage)
    if stage is None:
        raise ValueError(f"search stage {status.stage}")
    return SearchStatus(stage, tuple(status.searches))
