"""A limit of the time that the parsing of one document may take."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from orchestrator.index.formats import UnreadableDocument

MAX_SECONDS = 60.0
"""CPU time for one document. A PDF file of a thousand pages takes about half of it."""

REPEAT_SECONDS = 1.0
"""CPU time after which a block that caught the interruption is interrupted again."""


class _OutOfTime(BaseException):
    """Not an Exception: libraries and the readers take those for damaged files."""


@contextmanager
def limited_cpu_time() -> Iterator[None]:
    """Interrupts the block after `MAX_SECONDS` of the process. Raises UnreadableDocument.

    Only in the main thread, where Python handles signals; elsewhere there is no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise _OutOfTime

    before = signal.signal(signal.SIGVTALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, MAX_SECONDS, REPEAT_SECONDS)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    except _OutOfTime:
        raise UnreadableDocument(
            f"must be parsed in at most {MAX_SECONDS:g} s of CPU time, takes longer"
        ) from None
    finally:
        # Once more: an interruption may have come before the timer was stopped above.
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
