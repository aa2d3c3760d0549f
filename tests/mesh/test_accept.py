"""Quality values of the Accept header."""

from __future__ import annotations

import pytest

from mesh.accept import prefers


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", False),
        ("*/*", False),
        ("application/json", False),
        ("application/*", False),
        ("text/event-stream", True),
        ("TEXT/Event-Stream; charset=utf-8", True),
        ("text/*", True),
        ("text/event-stream;q=0", False),
        ("text/event-stream;q=0.0, application/json", False),
        ("text/event-stream; q=0.5, */*;q=0.1", True),
        ("text/event-stream;q=0.5, */*", False),
        ("application/json, text/event-stream", True),
        ("application/json, text/event-stream;q=0.9", False),
        ("application/json;q=0.8, text/event-stream;q=0.9", True),
        ("application/json;q=x, text/event-stream;q=0.1", True),
        ("text/event-stream;q=2", False),
        ("text/event-stream;q=nan", False),
        ("text/event-streams", False),
    ],
)
def test_an_event_stream_is_preferred_by_quality(accept: str, expected: bool) -> None:
    """It must be named, and with at least the quality of JSON."""
    assert prefers(accept, "text/event-stream", "application/json") == expected
