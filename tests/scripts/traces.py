"""Traces of made-up searches, for tests and pictures of the trace viewer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from mesh.observability import semconv
from scripts.traceview.spans import Event, Span

MILLISECOND = 1_000_000
BEGIN = 1_800_000_000_000 * MILLISECOND


class Stage(NamedTuple):
    """A span of each trace; times are fractions of the duration."""

    name: str
    service: str
    kind: str
    parent: str
    begin: float
    end: float


STAGES = (
    Stage("GET /api/v1/search", "gateway", "server", "", 0, 1),
    Stage("mesh.v1.OrchestratorService/SummarizeStream", "gateway", "client", "0", 0.01, 0.99),
    Stage("mesh.v1.OrchestratorService/SummarizeStream", "orchestrator", "server", "1", 0.02, 0.98),
    Stage("admission", "orchestrator", "internal", "2", 0.02, 0.021),
    Stage("retrieval documents", "orchestrator", "internal", "2", 0.03, 0.08),
    Stage("encode", "orchestrator", "internal", "2", 0.08, 0.12),
    Stage("mesh.v1.TokenizerService/Encode", "orchestrator", "client", "5", 0.085, 0.118),
    Stage("mesh.v1.TokenizerService/Encode", "tokenizer", "server", "6", 0.09, 0.11),
    Stage("chat demo", "orchestrator", "client", "2", 0.12, 0.95),
    Stage("choose_replica", "orchestrator", "internal", "8", 0.12, 0.122),
    Stage("mesh.v1.InferenceService/Generate", "orchestrator", "client", "8", 0.125, 0.94),
    Stage("chat demo", "inference", "server", "10", 0.13, 0.93),
    Stage("queue", "inference", "internal", "11", 0.13, 0.2),
    Stage("prefill", "inference", "internal", "11", 0.2, 0.35),
    Stage("decode", "inference", "internal", "11", 0.35, 0.93),
    Stage("grounding", "orchestrator", "internal", "2", 0.95, 0.97),
)


def make_trace(number: int, *, failed: bool = False) -> Iterator[Span]:
    """The spans of search `number`; each 100th failed over, and a failed one takes 2.34 s."""
    duration = 2340 if failed else 100 + number % 400
    start = BEGIN + number * 1000 * MILLISECOND
    fails_over = number % 100 == 0
    for place, stage in enumerate(STAGES):
        begin = start + int(stage.begin * duration * MILLISECOND)
        events = [Event("weir.first_token", begin + MILLISECOND, {})] if place == 14 else []
        if fails_over and stage.name == "chat demo" and stage.kind == "client":
            middle = begin + duration * MILLISECOND // 3
            events.append(Event(semconv.FAILOVER, middle, {"server.address": "10.0.0.7"}))
        outcome = "failed_over" if fails_over else "failed" if failed else "ok"
        yield Span(
            service=stage.service,
            trace_id=f"{number + 1:032x}",
            span_id=str(place),
            parent_id=stage.parent,
            name=stage.name,
            kind=stage.kind,
            start=begin,
            end=start + int(stage.end * duration * MILLISECOND),
            failed=failed and place < 3,
            message="the engine failed" if failed and place < 3 else "",
            attributes={
                semconv.OUTCOME: outcome if place < 3 else "ok",
                semconv.REQUEST_ID: f"request-{number}",
                "gen_ai.request.model": "demo",
                "gen_ai.usage.output_tokens": 128,
            },
            events=tuple(events),
            links=(),
        )
