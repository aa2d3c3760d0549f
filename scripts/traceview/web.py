"""HTTP server: receives OTLP over HTTP, and serves the web page and the traces as JSON.

GET  /, /trace/ID       the web page
GET  /api/traces        summaries, filtered by q, outcome, min_ms and max_ms; with version=N, the
                        last one seen, 204 if nothing has changed since
GET  /api/traces/ID     one trace
POST /v1/traces         an OTLP export in protobuf, optionally compressed with gzip
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from google.protobuf.message import DecodeError

from mesh.process.threaded_server import serve_in_thread
from mesh.rpc.targets import AddressError
from scripts.traceview.otlp import MAX_MESSAGE_BYTES, empty_response, parse_bytes
from scripts.traceview.query import Query, parse_query
from scripts.traceview.spans import Row, Span, waterfall
from scripts.traceview.store import Store

FOLDER = Path(__file__).parent / "static"
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/traceview.css": ("traceview.css", "text/css; charset=utf-8"),
    "/list.js": ("list.js", "text/javascript; charset=utf-8"),
    "/trace.js": ("trace.js", "text/javascript; charset=utf-8"),
}
HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

_TRACE_PAGE = re.compile("/trace/[0-9a-f]{32}")
_TRACE = re.compile("/api/traces/([0-9a-f]{32})")


@contextmanager
def web_server(address: str, store: Store) -> Iterator[int]:
    """Serves at `address`, HOST:PORT; yields the port. Raises AddressError."""
    host, _, port = address.rpartition(":")
    handler = type("_BoundHandler", (_Handler,), {"store": store})
    try:
        server = ThreadingHTTPServer((host.strip("[]"), int(port)), handler)
    except OSError as error:
        raise AddressError(address, error) from error
    with serve_in_thread(server, "web") as bound_port:
        yield bound_port


def trace_json(store: Store, trace_id: str) -> dict[str, Any] | None:
    """One trace for the page, times in milliseconds from its start; None if it is unknown."""
    spans = store.spans(trace_id)
    if not spans:
        return None
    start = min(span.start for span in spans)
    return {
        "trace_id": trace_id,
        "duration_ms": (max(span.end for span in spans) - start) / 1e6,
        "spans": [_row_json(row, start) for row in waterfall(spans)],
        "steps": [_span_json(step, start) for step in store.steps(trace_id)],
    }


def _row_json(row: Row, start: int) -> dict[str, Any]:
    return {
        **_span_json(row.span, start),
        "depth": row.depth,
        "self_ms": row.self_time / 1e6,
    }


def _span_json(span: Span, start: int) -> dict[str, Any]:
    return {
        "id": span.span_id,
        "service": span.service,
        "name": span.name,
        "kind": span.kind,
        "start_ms": (span.start - start) / 1e6,
        "duration_ms": (span.end - span.start) / 1e6,
        "outcome": span.outcome,
        "failed": span.failed,
        "message": span.message,
        "attributes": span.attributes,
        "events": [
            {"name": event.name, "at_ms": (event.time - start) / 1e6, **{"attributes": event[2]}}
            for event in span.events
        ],
    }


def list_json(store: Store, query: Query) -> dict[str, Any]:
    """The traces that match a query, times in milliseconds."""
    found = store.find(query)
    return {
        "version": found.version,
        "outcomes": found.outcomes,
        "traces": [
            {
                **summary._asdict(),
                "start": summary.start / 1e6,
                "duration_ms": summary.duration / 1e6,
            }
            for summary in found.traces
        ],
    }


class _Handler(BaseHTTPRequestHandler):
    """Handles one connection; `web_server` sets `store`."""

    store: Store
    protocol_version = "HTTP/1.1"
    timeout = 30

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if _TRACE_PAGE.fullmatch(path):
            path = "/"
        match = _TRACE.fullmatch(path)
        if path in FILES:
            name, content_type = FILES[path]
            self._respond(HTTPStatus.OK, (FOLDER / name).read_bytes(), content_type)
        elif path == "/favicon.ico":
            self._respond(HTTPStatus.NO_CONTENT, b"")
        elif path == "/api/traces":
            self._respond_list(dict(parse_qsl(query)))
        elif match is not None:
            trace = trace_json(self.store, match[1])
            status = HTTPStatus.NOT_FOUND if trace is None else HTTPStatus.OK
            self._respond_json(trace, status)
        else:
            self._respond(HTTPStatus.NOT_FOUND, b"not found\n")

    def do_POST(self) -> None:
        length = self.headers.get("content-length", "")
        if self.path != "/v1/traces" or not length.isdigit():
            self.close_connection = True  # the body is not read
            self._respond(HTTPStatus.NOT_FOUND, b"not found\n")
            return
        if int(length) > MAX_MESSAGE_BYTES:
            self.close_connection = True
            self._respond(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, b"too large\n")
            return
        body = self.rfile.read(int(length))
        try:
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            self.store.add(list(parse_bytes(body)))
        except (DecodeError, OSError, EOFError, zlib.error):
            self._respond(HTTPStatus.BAD_REQUEST, b"body must be an OTLP export in protobuf\n")
            return
        self._respond(HTTPStatus.OK, empty_response(), "application/x-protobuf")

    def _respond_list(self, fields: dict[str, str]) -> None:
        if fields.get("version") == str(self.store.version):
            self._respond(HTTPStatus.NO_CONTENT, b"")
            return
        try:
            wanted = parse_query(fields)
        except ValueError as error:
            self._respond(HTTPStatus.BAD_REQUEST, f"{error}\n".encode())
            return
        self._respond_json(list_json(self.store, wanted))

    def _respond_json(self, value: object, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._respond(status, json.dumps(value).encode(), "application/json")

    def _respond(self, status: HTTPStatus, body: bytes, content_type: str = "text/plain") -> None:
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": content_type}.items():
            self.send_header(name, value)
        if status is not HTTPStatus.NO_CONTENT:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Logs nothing."""
