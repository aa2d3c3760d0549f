"""The consumers' side of an engine: one stream a sequence, all on one event loop."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable
from collections.abc import Sequence as Outputs

from inference.engine.errors import DuplicateRequest
from inference.engine.interface import Finish, SequenceOutput
from inference.scheduler.sequence import Sequence
from inference.scheduler.step_result import StepOutput
from mesh.protocol.finish import FinishReason
from mesh.protocol.logprobs import TokenLogprob

BURST_SECONDS = 0.02
"""Streams that wait for their turn leave at multiples of this time."""

MIN_INTERVAL_SECONDS = 0.004
"""Between two chunks of a stream, however few there are: sooner is no use to any reader, and what
follows a first token would be in its way at every hop."""


class TokenStream:
    """The one pending chunk of a sequence: it grows until its consumer takes it."""

    __slots__ = (
        "_ending",
        "_finish",
        "_intervals",
        "_last",
        "_logprobs",
        "_prompt",
        "_token_ids",
        "_waiter",
    )

    def __init__(self) -> None:
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._prompt: list[TokenLogprob] = []
        self._finish: Finish | None = None
        self._last: float | None = None
        self._intervals: list[float] = []
        self._waiter: asyncio.Future[None] | None = None
        self._ending: asyncio.Future[None] | None = None

    def put(self, output: StepOutput) -> None:
        """Add what a step brought, and wake the consumer if it waits."""
        if output.token_ids:
            now = time.monotonic() if output.time is None else output.time
            if self._last is not None:
                # A step that verified drafts brings several tokens at once: each took its share.
                share = (now - self._last) / len(output.token_ids)
                self._intervals += [share] * len(output.token_ids)
            self._last = now
        self._token_ids += output.token_ids
        self._logprobs += output.logprobs
        self._prompt += output.prompt_logprobs
        self._finish = output.finish
        _wake(self._waiter)
        if output.finish is not None:
            _wake(self._ending)

    @property
    def has_begun(self) -> bool:
        """Whether it has had a token."""
        return self._last is not None

    @property
    def is_empty(self) -> bool:
        return not self._token_ids and self._finish is None

    async def hold(self, until: float) -> None:
        """Let the chunk grow until a time of the event loop, or until the sequence ends."""
        if self._finish is not None:
            return
        loop = asyncio.get_running_loop()
        self._ending = loop.create_future()
        timer = loop.call_at(until, _wake, self._ending)
        try:
            await self._ending
        finally:
            timer.cancel()
            self._ending = None

    async def take(self) -> SequenceOutput:
        """Wait until something is ready and take all of it. One consumer at a time."""
        if self.is_empty:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        chunk = SequenceOutput(
            token_ids=self._token_ids,
            logprobs=self._logprobs,
            prompt_logprobs=self._prompt,
            finish=self._finish,
            intervals=self._intervals,
        )
        self._token_ids, self._logprobs, self._prompt, self._intervals = [], [], [], []
        return chunk


def _wake(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)


class Streams:
    """The streams of all live sequences, by request id.

    A stream leaves when its finish is delivered or its consumer goes; a consumer that has yet
    to take the last chunk holds that chunk and nothing here.
    """

    def __init__(
        self,
        *,
        submit: Callable[[Sequence], None],
        abort: Callable[[str], None],
        on_demand: Callable[[], None] = lambda: None,
        max_chunks_per_second: float = 0.0,
    ) -> None:
        """`submit` and `abort` hand over to the engine; `on_demand` runs when a consumer waits.

        At most `max_chunks_per_second` are given in all, shared evenly by the streams that live;
        0: no limit. First chunks and last ones never wait.
        """
        self._seconds_per_chunk = 1 / max_chunks_per_second if max_chunks_per_second else 0.0
        self._submit = submit
        self._abort = abort
        self._on_demand = on_demand
        self._streams: dict[str, TokenStream] = {}
        self.num_holding = 0
        """Streams that could have tokens now, and wait for their turn."""
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def num_live(self) -> int:
        return len(self._streams)

    async def generate(
        self, sequence: Sequence, on_abandoned: Callable[[Finish], None] | None = None
    ) -> AsyncGenerator[SequenceOutput, None]:
        """Submit an admitted sequence and stream it; closing the generator aborts it.

        `on_abandoned` is told how far it came if it is closed before the last chunk is taken.
        """
        request_id = sequence.request_id
        if request_id in self._streams:
            raise DuplicateRequest(f"request id {request_id!r} is already in use")
        stream = self._streams[request_id] = TokenStream()
        self._empty.clear()
        delivered = False
        time_of = asyncio.get_running_loop().time
        taken: float | None = None
        self._submit(sequence)
        try:
            if stream.is_empty:
                yield SequenceOutput(token_ids=[], logprobs=[])
            while True:
                if stream.is_empty:
                    self._on_demand()
                if taken is not None and self._seconds_per_chunk:
                    await self._hold(stream, taken)
                chunk = await stream.take()
                taken = time_of()
                delivered = chunk.finish is not None
                yield chunk
                if chunk.finish is not None:
                    return
        except (asyncio.CancelledError, GeneratorExit):
            if on_abandoned is not None and not delivered:
                now = time.monotonic()
                on_abandoned(sequence.finish or sequence.so_far(FinishReason.ABORT, now))
            raise
        finally:
            # The id may belong to a later sequence by now: only this one's stream is closed.
            if self._streams.get(request_id) is stream:
                self._remove(request_id)
                self._abort(request_id)

    async def _hold(self, stream: TokenStream, taken: float) -> None:
        """Lets the stream's chunk grow until it is its turn again."""
        interval = max(self._seconds_per_chunk * len(self._streams), MIN_INTERVAL_SECONDS)
        due = taken + interval
        if interval >= BURST_SECONDS:
            # Together: what many streams send at once costs a fraction of as many single wakes.
            due = math.ceil(due / BURST_SECONDS) * BURST_SECONDS
        if due > asyncio.get_running_loop().time():
            self.num_holding += 1
            try:
                await stream.hold(due)
            finally:
                self.num_holding -= 1

    def deliver(self, outputs: Outputs[StepOutput]) -> None:
        """Hand a step's outputs to the consumers that are still there, in the order of `_rank`."""
        for output in sorted(outputs, key=self._rank) if len(outputs) > 1 else outputs:
            stream = self._streams.get(output.request_id)
            if stream is None:
                continue  # its consumer went away during the step
            stream.put(output)
            if output.finish is not None:
                self._remove(output.request_id)

    def _rank(self, output: StepOutput) -> int:
        """First tokens before others, ends behind them.

        What leaves together is handled one after another at every hop. A first token's client has
        nothing to read while it waits; an end takes the longest at each hop, and brings the
        client's next request.
        """
        stream = self._streams.get(output.request_id)
        if stream is None or not stream.has_begun:
            return 0
        return 1 if output.finish is None else 2

    async def wait_empty(self, timeout: float) -> bool:
        """Wait until no sequence lives; False if some still do after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True

    def _remove(self, request_id: str) -> None:
        del self._streams[request_id]
        if not self._streams:
            self._empty.set()
