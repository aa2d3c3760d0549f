"""Logs as events: a constant phrase and fields, written as JSON or, on a terminal, as text.

    logger.info("request finished", extra={"code": "OK", "duration_seconds": 0.2})

Request id and trace id are added from the context.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal

from pydantic_core import PydanticSerializationError, to_json

from mesh.context import current_request
from mesh.observability import telemetry

_STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {
    "message",
    "asctime",
    "taskName",
    "service",
    "request_id",
    "trace_id",
}


def configure(
    service: str, level: str = "INFO", format: Literal["auto", "json", "text"] = "auto"
) -> None:
    """Send all logs of this process to standard error in one format."""
    handler = logging.StreamHandler(sys.stderr)
    text = format == "text" or (format == "auto" and sys.stderr.isatty())
    handler.setFormatter(_TextFormatter() if text else _JsonFormatter())
    handler.addFilter(_ContextFilter(service))
    _record_no_callers()
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # Libraries that log at INFO what the access line already contains.
    for noisy in ("httpx", "httpcore", "uvicorn.access", "uvicorn.error", "huggingface_hub"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))
    # By the specifications invalid headers are ignored. These loggers log the headers that a client
    # sent, with every request, at WARNING.
    for about_headers in ("trace.span", "trace.propagation", "baggage.propagation"):
        logger = logging.getLogger(f"opentelemetry.{about_headers}")
        logger.setLevel(max(logging.ERROR, root.level))


def _record_no_callers() -> None:
    """Spare each record what no format contains (Python: "Logging HOWTO", Optimization)."""
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


class _ContextFilter(logging.Filter):
    """Adds the service, the request id and the trace id to every record."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def filter(self, record: logging.LogRecord) -> bool:
        request = current_request()
        record.service = self._service
        record.request_id = request.request_id if request is not None else None
        record.trace_id = telemetry.trace_id() or None
        return True


class _JsonFormatter(logging.Formatter):
    """One object a line: time, severity, service, logger, message, ids, then the fields.

    Each service logs a line for each request, and python-json-logger takes half as long again.
    """

    def format(self, record: logging.LogRecord) -> str:
        given = record.__dict__
        event = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "severity": record.levelname,
            "service": given["service"],
            "logger": record.name,
            "message": record.getMessage(),
        }
        for key in ("request_id", "trace_id"):
            if given[key] is not None:
                event[key] = given[key]
        for key, value in given.items():
            if key not in _STANDARD_FIELDS and value is not None:
                event[key] = value
        if record.exc_info:
            event["exc_info"] = self.formatException(record.exc_info)
        if record.stack_info:
            event["stack_info"] = self.formatStack(record.stack_info)
        try:
            return to_json(event, fallback=str).decode()
        except PydanticSerializationError:  # for a lone surrogate, which is escaped here
            return json.dumps(event, default=str)


class _TextFormatter(logging.Formatter):
    """For terminals: `12:00:00.000 INFO  orchestrator request finished code=OK …`."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S.%f")[:-3]
        fields = [
            f"{key}={_short(value)}"
            for key, value in vars(record).items()
            if key not in _STANDARD_FIELDS and value is not None
        ]
        if record.request_id:  # type: ignore[attr-defined]
            fields.append(f"request_id={record.request_id}")  # type: ignore[attr-defined]
        service = record.service  # type: ignore[attr-defined]
        line = " ".join([time, f"{record.levelname:<7}", service, record.getMessage(), *fields])
        if record.exc_info:
            line = f"{line}\n{self.formatException(record.exc_info)}"
        return line


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
