"""Runs a service with every span taken out: what tracing is compared with.

python -m benchmarks.untraced gateway --listen 127.0.0.1:8080
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry.trace import INVALID_SPAN, Span

from mesh import tracing


@contextmanager
def _no_span(*args: Any, **options: Any) -> Iterator[Span]:
    yield INVALID_SPAN


def _nothing(*args: Any, **options: Any) -> None:
    pass


class _NoClientSpan:
    def __init__(self, *args: Any, **options: Any) -> None:
        self.complete = False
        self.error: object = None

    def __enter__(self) -> _NoClientSpan:
        return self

    def __exit__(self, *args: object) -> None:
        pass


def main() -> None:
    """Takes the spans out, then runs the service named first with the flags after it."""
    tracing.stage = tracing.detached_stage = tracing.server_span = _no_span
    tracing.set_server_status = tracing.set_outcome = _nothing
    tracing.ClientSpan = _NoClientSpan  # type: ignore[assignment, misc]
    service = sys.argv[1]
    sys.argv[1:] = sys.argv[2:]
    if service == "gateway":
        from gateway import observe

        observe.http_span = _no_span
        observe.end_span = _nothing
    runpy.run_module(service, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
