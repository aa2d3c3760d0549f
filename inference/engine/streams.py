"""The consumers' side of an engine: one stream per sequence, all on one event loop."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, abc
from collections.abc import AsyncGenerator, Callable

from inference.engine.emptiness import Emptiness
from inference.engine.errors import DuplicateRequest, EngineError
from inference.engine.interface import Finish, SequenceOutput
from inference.scheduler.sequence import Sequence
from inference.scheduler.step_result import StepOutput
from mesh.protocol.finish import FinishReason
from mesh.protocol.logprobs import TokenLogprob

BURST_SECONDS = 0.02
"""Under load, delayed outputs leave together at multiples of this time."""

MIN_INTERVAL_SECONDS = 0.004
"""Least time between two outputs of a stream, even with few streams. Readers do not notice it, and
more frequent messages would delay the first tokens of other streams at every hop."""


class SequenceStream:
    """The pending output of a sequence, which grows until its consumer takes it."""

    __slots__ = (
        "_ending",
        "_finish",
        "_intervals",
        "_last",
        "_logprobs",
        "_loop",
        "_prompt",
        "_token_ids",
        "_waiter",
        "num_taken",
        "sequence",
        "taken",
    )

    def __init__(self, sequence: Sequence, loop: asyncio.AbstractEventLoop) -> None:
        self.sequence = sequence
        self.taken: float | None = None
        """When the last output was taken, by the loop's clock; None: none yet."""
        self.num_taken = sequence.num_completion_tokens
        """Tokens of the completion that the consumer has, those of an earlier attempt included."""
        self._loop = loop
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._prompt: list[TokenLogprob] = []
        self._finish: Finish | None = None
        self._last: float | None = None
        self._intervals: list[float] = []
        self._waiter: asyncio.Future[None] | None = None
        self._ending: asyncio.Future[None] | None = None

    def put(self, output: StepOutput) -> None:
        """Add a step's output, and wake the consumer if it waits."""
        if output.token_ids:
            now = time.monotonic() if output.time is None else output.time
            if self._last is not None:
                # A step that verified drafts yields several tokens: each gets an equal share.
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
        """Whether the sequence has had a token."""
        return self._last is not None

    @property
    def is_empty(self) -> bool:
        return not self._token_ids and self._finish is None

    async def hold(self, until: float) -> None:
        """Let the output grow until a time of the event loop, or until the sequence ends."""
        if self._finish is not None:
            return
        self._ending = self._loop.create_future()
        timer = self._loop.call_at(until, _wake, self._ending)
        try:
            await self._ending
        finally:
            timer.cancel()
            self._ending = None

    async def take(self) -> SequenceOutput:
        """Wait until there is output, and take all of it. One consumer at a time."""
        if self.is_empty:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        output = SequenceOutput(
            token_ids=self._token_ids,
            logprobs=self._logprobs,
            prompt_logprobs=self._prompt,
            finish=self._finish,
            intervals=self._intervals,
        )
        self.num_taken += len(self._token_ids)
        self._token_ids, self._logprobs, self._prompt, self._intervals = [], [], [], []
        self.taken = self._loop.time()
        return output


def _wake(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)


class Streams:
    """The streams of all live sequences, by request id.

    A stream is removed when its finish is delivered or its consumer leaves. A consumer that has
    yet to take the last output holds that output itself.
    """

    def __init__(
        self,
        *,
        submit: Callable[[Sequence], None],
        abort: Callable[[Sequence, int], None],
        on_demand: Callable[[], None] = lambda: None,
        max_messages_per_second: float = 0.0,
    ) -> None:
        """`submit` and `abort` pass to the engine; `on_demand` runs when a consumer waits.

        `abort` gets a sequence whose consumer leaves, and the number of completion tokens that the
        consumer has. The sequence may have ended: its last output is not read then.

        `max_messages_per_second` limits the outputs of all streams together, in equal shares;
        0: no limit. First and last outputs are never delayed.
        """
        self._seconds_per_message = 1 / max_messages_per_second if max_messages_per_second else 0.0
        self._submit = submit
        self._abort = abort
        self._on_demand = on_demand
        self._streams: dict[str, SequenceStream] = {}
        self._groups: Counter[str] = Counter()
        self.num_holding = 0
        """Streams whose output is delayed by `max_messages_per_second`."""
        self.empty = Emptiness()

    @property
    def num_live(self) -> int:
        return len(self._streams)

    def has_group(self, group: str) -> bool:
        """Whether a sequence of this group is live."""
        return group in self._groups

    async def generate(
        self, sequence: Sequence, on_abandoned: Callable[[Finish], None] | None = None
    ) -> AsyncGenerator[SequenceOutput, None]:
        """Submit an admitted sequence and stream it; closing the generator aborts it.

        `on_abandoned` is called with the finish so far if it is closed before the last output.
        """
        stream = self._open(sequence)
        finished = False
        self._submit(sequence)
        try:
            if stream.is_empty:
                yield SequenceOutput(token_ids=[], logprobs=[])
            while not finished:
                if stream.is_empty:
                    self._on_demand()
                if stream.taken is not None and self._seconds_per_message:
                    await self._hold(stream, stream.taken)
                output = await stream.take()
                finished = output.finish is not None
                yield output
        except (asyncio.CancelledError, GeneratorExit):
            if on_abandoned is not None and not finished:
                now = time.monotonic()
                on_abandoned(sequence.finish or sequence.so_far(FinishReason.ABORT, now))
            raise
        finally:
            # The id may belong to a later sequence by now: only this one's stream is closed.
            is_live = self._streams.get(sequence.request_id) is stream
            if is_live:
                self._remove(sequence.request_id)
            if is_live or not finished:
                self._abort(sequence, stream.num_taken)

    def deliver(self, outputs: abc.Sequence[StepOutput]) -> None:
        """Pass a step's outputs to the consumers that are still there, in the order of `_rank`."""
        for output in sorted(outputs, key=self._rank) if len(outputs) > 1 else outputs:
            stream = self._streams.get(output.request_id)
            if stream is None:
                continue  # its consumer left during the step
            stream.put(output)
            if output.finish is not None:
                self._remove(output.request_id)

    def end_all(self, error: EngineError) -> list[str]:
        """End every stream with `error` as the cause, without waiting for the engine.

        Returns their request ids; the caller must abort the sequences in the engine.
        """
        ended = list(self._streams)
        for request_id in ended:
            self.end(request_id, FinishReason.ABORT, error)
        return ended

    def end(
        self, request_id: str, reason: FinishReason, error: EngineError | None = None
    ) -> Finish | None:
        """End one stream without waiting for the engine; None if there is no such stream.

        The caller must abort the sequence in the engine.
        """
        stream = self._streams.get(request_id)
        if stream is None:
            return None
        finish = stream.sequence.so_far(reason, time.monotonic(), error)
        self.deliver([StepOutput(request_id, [], [], finish)])
        return finish

    def _open(self, sequence: Sequence) -> SequenceStream:
        request_id = sequence.request_id
        if request_id in self._streams:
            raise DuplicateRequest(f"request id {request_id!r} is already in use")
        stream = SequenceStream(sequence, asyncio.get_running_loop())
        self._streams[request_id] = stream
        self._groups[sequence.group] += 1
        self.empty.update(is_empty=False)
        return stream

    async def _hold(self, stream: SequenceStream, taken: float) -> None:
        """Let the stream's output grow until the stream may send again."""
        interval = max(self._seconds_per_message * len(self._streams), MIN_INTERVAL_SECONDS)
        due = taken + interval
        if interval >= BURST_SECONDS:
            # Sending many streams' outputs at once costs a fraction of as many single wake-ups.
            due = math.ceil(due / BURST_SECONDS) * BURST_SECONDS
        if due > asyncio.get_running_loop().time():
            self.num_holding += 1
            try:
                await stream.hold(due)
            finally:
                self.num_holding -= 1

    def _rank(self, output: StepOutput) -> int:
        """First tokens before other tokens, finishes last.

        Outputs that leave together are handled one after another at every hop. The client of a
        first token has nothing to read meanwhile. A finish takes longest at each hop, and is
        followed by the client's next request.
        """
        stream = self._streams.get(output.request_id)
        if stream is None or not stream.has_begun:
            return 0
        return 1 if output.finish is None else 2

    def _remove(self, request_id: str) -> None:
        group = self._streams.pop(request_id).sequence.group
        self._groups[group] -= 1
        if not self._groups[group]:
            del self._groups[group]
        self.empty.update(is_empty=not self._streams)
