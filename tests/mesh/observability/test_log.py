"""Log formats: one JSON object a line, or one line of text."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest
from opentelemetry import trace

from mesh.context import RequestContext, use_request
from mesh.observability import log, telemetry

logger = logging.getLogger("bakery.oven")


Lines = Callable[[], list[str]]


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Iterator[Lines]:
    """The lines on standard error; the root logger is restored afterwards."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield lambda: capsys.readouterr().err.splitlines()
    root.handlers[:] = handlers
    root.setLevel(level)


def test_json_has_the_event_its_fields_and_its_ids(lines: Lines) -> None:
    """Request id and trace id are added from the context."""
    log.configure("bakery", "INFO", "json")
    request = RequestContext(request_id="r-1")
    with use_request(request), trace.get_tracer("t").start_as_current_span("s") as span:
        logger.info("bread %s", "baked", extra={"num_loaves": 3, "kind": "rögg"})
    [line] = lines()
    event = json.loads(line)
    time = datetime.fromisoformat(event.pop("time"))
    assert time.utcoffset() is not None
    assert event == {
        "severity": "INFO",
        "service": "bakery",
        "logger": "bakery.oven",
        "message": "bread baked",
        "request_id": "r-1",
        "trace_id": trace.format_trace_id(span.get_span_context().trace_id),
        "num_loaves": 3,
        "kind": "rögg",
    }


def test_json_takes_any_value(lines: Lines) -> None:
    """Values that are no JSON are written as text; a lone surrogate loses no line."""
    log.configure("bakery", "INFO", "json")
    logger.info("odd", extra={"kind": Path("rye"), "text": "\ud800"})
    [line] = lines()
    assert json.loads(line)["kind"] == "rye"


def test_json_omits_missing_fields(lines: Lines) -> None:
    """Outside of a request there are no ids; line breaks are escaped."""
    log.configure("bakery", "INFO", "json")
    logger.info("two\nlines", extra={"nothing": None})
    [line] = lines()
    assert json.loads(line).keys() == {*("time", "severity", "service", "logger", "message")}


def test_json_has_the_traceback(lines: Lines) -> None:
    """The exception is a field of the event."""
    log.configure("bakery", "INFO", "json")
    try:
        raise ValueError("burnt")
    except ValueError:
        logger.exception("failed")
    [line] = lines()
    event = json.loads(line)
    assert "ValueError: burnt" in event["exc_info"]


def test_text_has_one_readable_line(lines: Lines) -> None:
    """Time, severity, service, event, fields, request id."""
    log.configure("bakery", "INFO", "text")
    with use_request(RequestContext(request_id="r-1")):
        logger.warning("baked", extra={"duration_seconds": 0.123456, "num_loaves": 3})
    [line] = lines()
    time, _, rest = line.partition(" ")
    assert len(time) == len("12:00:00.000")
    assert rest == "WARNING bakery baked duration_seconds=0.1235 num_loaves=3 request_id=r-1"


def test_text_shows_a_traceback(lines: Lines) -> None:
    """On the lines after the event."""
    log.configure("bakery", "INFO", "text")
    try:
        raise ValueError("burnt")
    except ValueError:
        logger.exception("failed")
    first, *_, last = lines()
    assert first.endswith("ERROR   bakery failed")
    assert last == "ValueError: burnt"


def test_auto_is_json_unless_it_is_a_terminal(lines: Lines) -> None:
    """A pod logs JSON by default."""
    log.configure("bakery", "INFO", "auto")
    logger.info("event")
    [line] = lines()
    assert json.loads(line)["message"] == "event"


def test_auto_is_text_on_a_terminal(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard error is a terminal."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    log.configure("bakery", "INFO", "auto")
    logger.info("event", extra={"num_loaves": 3})
    [line] = lines()
    assert line.endswith("INFO    bakery event num_loaves=3")


def test_the_level_applies_to_libraries(lines: Lines) -> None:
    """Own loggers from the level up; verbose libraries from WARNING up."""
    log.configure("bakery", "INFO", "json")
    logger.debug("no")
    logging.getLogger("httpx").info("no")
    logging.getLogger("httpx").warning("yes")
    assert [json.loads(line)["message"] for line in lines()] == ["yes"]


@pytest.mark.parametrize(
    "headers",
    [
        {"traceparent": f"00-{'1' * 32}-{'2' * 16}-01", "tracestate": "instance,=,a=b,a=c"},
        {"traceparent": f"00-{'1' * 32}-{'2' * 16}-01", "tracestate": ",".join(["k=v"] * 40)},
        {"baggage": "instance,=;,%%%=\x7f,a=b=c"},
        {"baggage": ",".join(f"k{number}=v" for number in range(400))},
        {"baggage": "k=" + "v" * 10_000},
    ],
)
def test_invalid_headers_of_a_client_are_not_logged(lines: Lines, headers: dict[str, str]) -> None:
    """By OpenTelemetry's libraries, at WARNING with their values: a client could fill the log."""
    names = ("opentelemetry.trace.span", "opentelemetry.trace.propagation")
    for name in (*names, "opentelemetry.baggage.propagation"):
        logging.getLogger(name).setLevel(logging.NOTSET)
    log.configure("bakery", "INFO", "json")
    telemetry.caller_of(headers)
    assert lines() == []
