"""The running `Generate` calls by the caller's request id, for `Abort`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from inference.engine.interface import EngineClient
from mesh.protocol.finish import FinishReason


class Call:
    """One call. The engine has its sequences under separate ids, as callers may repeat theirs."""

    def __init__(self) -> None:
        self.is_aborted = False
        self.sequence_ids: list[str] = []


class Calls:
    """Ends the sequences of calls that are aborted."""

    def __init__(self, engine: EngineClient) -> None:
        self._engine = engine
        self._running: dict[str, set[Call]] = {}

    @property
    def num_running(self) -> int:
        """Number of calls with a request id."""
        return sum(len(calls) for calls in self._running.values())

    @contextmanager
    def running(self, request_id: str) -> Iterator[Call]:
        """A call that can be aborted inside the block, unless its request id is empty."""
        call = Call()
        if request_id:
            self._running.setdefault(request_id, set()).add(call)
        try:
            yield call
        finally:
            if request_id:
                same_id = self._running[request_id]
                same_id.remove(call)
                if not same_id:
                    del self._running[request_id]

    def abort(self, request_id: str) -> None:
        """End the sequences of all calls with this id; does nothing if there are none."""
        for call in self._running.get(request_id, ()):
            call.is_aborted = True
            for sequence_id in call.sequence_ids:
                self._engine.end(sequence_id, FinishReason.ABORT)

    def accepted(self, call: Call, sequence_id: str) -> None:
        """A sequence can be ended from now on; ends it if its call was aborted before."""
        call.sequence_ids.append(sequence_id)
        if call.is_aborted:
            self._engine.end(sequence_id, FinishReason.ABORT)
