"""Spans of a sequence's way through the engine, made from the engine's own timestamps."""

from __future__ import annotations

import time

from opentelemetry import trace

from inference.interface import Finish

TRACER = trace.get_tracer("weir.inference")


def record(finish: Finish) -> None:
    """Adds `queue`, `prefill` and `decode` below the current span, and the counts to it."""
    span = trace.get_current_span()
    if not span.is_recording():
        return
    span.set_attributes(
        {
            "gen_ai.operation.name": "text_completion",
            "gen_ai.provider.name": "weir",
            "gen_ai.usage.input_tokens": finish.num_prompt_tokens,
            "gen_ai.usage.output_tokens": finish.num_completion_tokens,
            "gen_ai.response.finish_reasons": [finish.reason.value],
            "weir.cached_tokens": finish.num_cached_tokens,
            "weir.num_preemptions": finish.num_preemptions,
            "weir.mean_batch_size": finish.mean_batch_size,
        }
    )
    timings = finish.timings
    _child("queue", timings.arrival, timings.scheduled or timings.finish)
    if timings.scheduled is not None:
        _child("prefill", timings.scheduled, timings.first_token or timings.finish)
    if timings.first_token is not None:
        _child("decode", timings.first_token, timings.finish)
        span.add_event("gen_ai.first_token", timestamp=_wall_clock(timings.first_token))


def _child(name: str, start: float, end: float) -> None:
    TRACER.start_span(name, start_time=_wall_clock(start)).end(_wall_clock(end))


def _wall_clock(monotonic: float) -> int:
    """Nanoseconds since 1970 of a `time.monotonic()` reading of this host."""
    return time.time_ns() - round((time.monotonic() - monotonic) * 1e9)
