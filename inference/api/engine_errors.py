"""The engine's errors as `MeshError`s, for the services."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from inference.engine import errors
from mesh.errors import ErrorKind, MeshError
from mesh.process.backlog import Backlog

_KIND_OF_ERROR: tuple[tuple[type[errors.EngineError], ErrorKind], ...] = (
    (errors.InvalidSamplingParams, ErrorKind.INVALID_REQUEST),
    (errors.InvalidPrompt, ErrorKind.INVALID_REQUEST),
    (errors.ContextTooLong, ErrorKind.CONTEXT_TOO_LONG),
    (errors.UnsupportedCall, ErrorKind.UNIMPLEMENTED),
    (errors.AdaptersDisabled, ErrorKind.UNIMPLEMENTED),
    (errors.AdapterNotFound, ErrorKind.MODEL_NOT_FOUND),
    (errors.InvalidAdapter, ErrorKind.INVALID_REQUEST),
    (errors.Overloaded, ErrorKind.OVERLOADED),
    (errors.DeadlineExceeded, ErrorKind.DEADLINE),
    # A caller should retry both on another replica.
    (errors.EngineUnavailable, ErrorKind.UNAVAILABLE),
    (errors.StepFailed, ErrorKind.UNAVAILABLE),
    # Says nothing about this replica: see `orchestrator.routing.failover`.
    (errors.SequenceFailed, ErrorKind.INTERNAL),
)


@contextmanager
def engine_errors(backlog: Backlog) -> Iterator[None]:
    """Raise the engine's errors as `MeshError`s."""
    try:
        yield
    except errors.EngineError as error:
        for cls, kind in _KIND_OF_ERROR:
            if isinstance(error, cls):
                retry_after = backlog.retry_after() if kind is ErrorKind.OVERLOADED else None
                raise MeshError(
                    kind, str(error), param=error.field, retry_after=retry_after
                ) from error
        raise
