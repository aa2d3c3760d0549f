"""The caller's side: one open stream, and the calls in it."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from mesh.rpc.multiplex.wire import (
    BATCH_SECONDS,
    FIRST_PATHS,
    MAX_BATCH_BYTES,
    MAX_OVERDRAFT_BYTES,
    MESSAGE_COST_BYTES,
    WINDOW_BYTES,
    MetadataItem,
    metadata_from_proto,
    metadata_to_proto,
)
from mesh.rpc.transport import MAX_MESSAGE_BYTES
from mesh.v1 import multiplex_pb2

_CODES = {code.value[0]: code for code in grpc.StatusCode}

Deserialize = Callable[[bytes], Any]

Take = Callable[[list[Any], Callable[[], None]], list[Any] | None]
"""Takes responses that arrived; returns what the reader gets instead. None: it takes them later,
and calls the function for that."""


_Message = tuple[bytes, int]
"""A message, and what it still costs: the parts before its last one were granted again."""


class CallerStream:
    """A stream that the server has accepted. `run` must run while it has calls."""

    def __init__(self, call: Any, accepted: multiplex_pb2.MultiplexResponse) -> None:
        """`call` is the stream's grpc.aio call, and `accepted` its first response."""
        self.opened = time.monotonic()
        self.paths = frozenset(accepted.paths) or FIRST_PATHS
        """The calls that can be made in the stream."""
        # Kept, because get_running_loop is a system call in Python 3.11.
        self.loop = asyncio.get_running_loop()
        self._call = call
        self._calls: dict[int, MultiplexedCall] = {}
        self._last_id = 0
        self._request = multiplex_pb2.MultiplexRequest()
        self._request_bytes = 0
        self._pending = asyncio.Event()
        self._retired = False
        self.lost = False
        """Whether the stream has ended."""

    @property
    def takes_calls(self) -> bool:
        """Whether a call may begin now."""
        return not self.lost and self._request_bytes < MAX_BATCH_BYTES

    async def run(self) -> None:
        """Sends and reads until the stream ends, or until the last call after `retire`.

        Then the calls that are left end with UNAVAILABLE.
        """
        sending = asyncio.create_task(self._send(), name="send multiplexed requests")
        reason = "the connection was lost"
        try:
            if self._retired and not self._calls:
                return
            while (response := await self._call.read()) is not grpc.aio.EOF:
                self._receive(response)
        except grpc.aio.AioRpcError as error:
            reason = error.details() or reason
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # The last call has ended after `retire`, or the channel was closed.
        finally:
            self.lost = True
            sending.cancel()
            self._call.cancel()
            for call in list(self._calls.values()):
                call.finish(grpc.StatusCode.UNAVAILABLE, reason)
            await asyncio.gather(sending, return_exceptions=True)

    def retire(self) -> None:
        """Ends the stream after its last call; new calls use another one."""
        self._retired = True
        self._end_if_unused()

    def begin(
        self,
        path: str,
        request: bytes,
        metadata: Iterable[MetadataItem],
        timeout: float | None,
        deserialize: Deserialize,
        kind: type[MultiplexedCall],
    ) -> MultiplexedCall:
        """Begins a call; `timeout` is in seconds. Raises ValueError for text that is no Unicode."""
        # Before the call is known: metadata that cannot be sent must leave nothing of it.
        converted = list(metadata_to_proto(metadata))
        self._last_id += 1
        call = self._calls[self._last_id] = kind(self, self._last_id, deserialize)
        begin = self._request.begins.add(
            call_id=self._last_id,
            path=path,
            request=request,
            metadata=converted,
            timeout=timeout,
        )
        self._request_bytes += begin.ByteSize()
        self._pending.set()
        if timeout is not None:
            call.end_after(timeout)
        return call

    def grant(self, call_id: int, num_bytes: int) -> None:
        """Lets the server send this much more of a call."""
        self._request.credits.add(call_id=call_id, num_bytes=num_bytes)
        self._pending.set()

    def cancel(self, call_id: int) -> None:
        """Cancels a call that has not ended."""
        self._request.cancelled.append(call_id)
        self._pending.set()

    def left(self, call_id: int) -> None:
        """Forgets a call that has ended."""
        del self._calls[call_id]
        if self._retired:
            self._end_if_unused()

    def _end_if_unused(self) -> None:
        if not self._calls:
            self._call.cancel()

    async def _send(self) -> None:
        try:
            while True:
                await self._pending.wait()
                self._pending.clear()
                request, self._request = self._request, multiplex_pb2.MultiplexRequest()
                self._request_bytes = 0
                await self._call.write(request)
                await asyncio.sleep(BATCH_SECONDS)
        except (grpc.aio.BaseError, asyncio.InvalidStateError):
            pass  # the stream has ended, which `run` reads

    def _receive(self, response: multiplex_pb2.MultiplexResponse) -> None:
        for message in response.messages:
            if (call := self._calls.get(message.call_id)) is not None:
                call.receive(message.data, message.more)
        for end in response.ends:
            if (call := self._calls.get(end.call_id)) is not None:
                code = _CODES.get(end.code, grpc.StatusCode.UNKNOWN)
                call.finish(code, end.details, metadata_from_proto(end.trailing_metadata))


class MultiplexedCall:
    """A call with a stream of responses: what `mesh.rpc.channel` uses of grpc.aio's calls."""

    def __init__(self, stream: CallerStream, call_id: int, deserialize: Deserialize) -> None:
        self._stream = stream
        self._id = call_id
        self._deserialize = deserialize
        self._messages: deque[_Message] = deque()
        self._parts: list[bytes] = []
        self._part_bytes = 0
        self._read_bytes = 0
        """Bytes that were read and not granted again."""
        self._credit = WINDOW_BYTES
        """Bytes that the server may send; it knows of them later than this side."""
        self._reading = False
        """Whether a reader waits."""
        self._direct: tuple[Take, contextvars.Context] | None = None
        self._left: list[Any] = []
        """What `Take` left for the reader."""
        self._failure: Exception | None = None
        """What `Take` raised, for the reader."""
        self._code: grpc.StatusCode | None = None
        self._details = ""
        self._trailing_metadata: tuple[MetadataItem, ...] = ()
        self._cancelled = False
        self._waiters: list[asyncio.Future[None]] = []
        self._timer: asyncio.TimerHandle | None = None

    @property
    def has_ready(self) -> bool:
        """Whether `read` returns a response at once."""
        return bool(self._messages or self._left) or self._failure is not None

    def pass_on(self, take: Take) -> None:
        """Calls `take` with what arrives while a reader waits, before the reader.

        It runs in the turn of the event loop in which the message arrived, in the caller's context,
        so it must not take long. What it raises is raised to the reader.
        """
        self._direct = take, contextvars.copy_context()

    async def read(self) -> Any:
        """The next response, or EOF. Raises AioRpcError, and CancelledError after `cancel`."""
        while not self.has_ready:
            if self._code is not None:
                return self._end(self._code)
            self._reading = True
            try:
                await self._change()
            except asyncio.CancelledError:
                self.cancel()
                raise
            finally:
                self._reading = False
        if self._left or self._failure is not None:
            return self._take_left()
        data, cost = self._messages.popleft()
        self._take(cost)
        try:
            return self._deserialize(data)
        except DecodeError:
            self._break_off("a response cannot be read")
            return self._end(grpc.StatusCode.INTERNAL)

    def __aiter__(self) -> MultiplexedCall:
        return self

    async def __anext__(self) -> Any:
        response = await self.read()
        if response is grpc.aio.EOF:
            raise StopAsyncIteration
        return response

    async def code(self) -> grpc.StatusCode:
        """The status, once the call has ended."""
        while self._code is None:
            await self._change()
        return self._code

    async def details(self) -> str:
        """The status's message, once the call has ended."""
        await self.code()
        return self._details

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        """What came with the status, once the call has ended."""
        await self.code()
        return grpc.aio.Metadata(*self._trailing_metadata)

    def done(self) -> bool:
        """Whether the call has ended."""
        return self._code is not None

    def cancelled(self) -> bool:
        """Whether the call was cancelled."""
        return self._code is grpc.StatusCode.CANCELLED

    def cancel(self) -> bool:
        """Cancels the call, at the server too; returns False if it has ended."""
        if self._code is not None:
            return False
        self._cancelled = True
        self._messages.clear()
        self._left.clear()
        self._failure = None
        self._stream.cancel(self._id)
        self.finish(grpc.StatusCode.CANCELLED, "Locally cancelled by application!")
        return True

    def end_after(self, timeout: float) -> None:
        """Ends the call with DEADLINE_EXCEEDED after `timeout` seconds."""
        self._timer = self._stream.loop.call_later(max(0.0, timeout), self._expire)

    def receive(self, data: bytes, more: bool) -> None:
        """Takes a message, or a part of one, from the stream."""
        cost = len(data) + MESSAGE_COST_BYTES
        self._credit -= cost
        if self._credit < -MAX_OVERDRAFT_BYTES:
            self._break_off("the server sends more than its credit")
            return
        if more:
            self._parts.append(data)
            self._part_bytes += max(1, len(data))
            if self._part_bytes > MAX_MESSAGE_BYTES:
                self._break_off(f"a message has more than {MAX_MESSAGE_BYTES} bytes")
                return
            self._take(cost)  # the reader can take the whole only
            return
        if self._parts:
            data = b"".join((*self._parts, data))
            self._parts.clear()
            self._part_bytes = 0
        direct = self._direct
        if direct is None or not self._reading or self._left or self._failure is not None:
            self._messages.append((data, cost))
            self._wake()
        elif self._messages:  # which `take` takes later
            self._messages.append((data, cost))
        else:
            self._offer([(data, cost)], *direct)

    def _offer(self, messages: list[_Message], take: Take, context: contextvars.Context) -> None:
        """Gives messages to `take`, and wakes the reader for what is left."""
        try:
            responses = [self._deserialize(data) for data, _ in messages]
            left = context.run(take, responses, self._retry)
        except DecodeError:
            self._break_off("a response cannot be read")
            return
        except Exception as error:
            self._failure = error
        else:
            if left is None:
                self._messages.extend(messages)
                return
            self._left = left
        for _, cost in messages:
            self._take(cost)
        if self._left or self._failure is not None:
            self._wake()

    def _retry(self) -> None:
        """Gives `take` the messages that it has not taken before, unless a reader has."""
        direct = self._direct
        if direct is not None and self._reading and self._messages and not self._left:
            messages = [*self._messages]
            self._messages.clear()
            self._offer(messages, *direct)

    def _take_left(self) -> Any:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        return self._left.pop(0)

    def finish(
        self,
        code: grpc.StatusCode,
        details: str,
        trailing_metadata: tuple[MetadataItem, ...] = (),
    ) -> None:
        """Ends the call with a status."""
        self._code, self._details = code, details
        self._trailing_metadata = trailing_metadata
        self._direct = None
        if self._timer is not None:
            self._timer.cancel()
        self._stream.left(self._id)
        self._wake()

    def _expire(self) -> None:
        self._stream.cancel(self._id)
        self.finish(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")

    def _break_off(self, details: str) -> None:
        """Ends the call, whose server breaks the rules, without what has not been read."""
        code = grpc.StatusCode.INTERNAL
        self._messages.clear()
        self._parts.clear()
        self._left.clear()
        if self._code is None:
            self._stream.cancel(self._id)
            self.finish(code, details)
        self._code, self._details = code, details

    def _end(self, code: grpc.StatusCode) -> object:
        if code is grpc.StatusCode.OK:
            return grpc.aio.EOF
        if self._cancelled:
            raise asyncio.CancelledError
        trailing = grpc.aio.Metadata(*self._trailing_metadata)
        raise grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, self._details)

    def _take(self, num_bytes: int) -> None:
        self._read_bytes += num_bytes
        if self._read_bytes >= WINDOW_BYTES // 2 and self._code is None:
            self._stream.grant(self._id, self._read_bytes)
            self._credit += self._read_bytes
            self._read_bytes = 0

    async def _change(self) -> None:
        waiter = self._stream.loop.create_future()
        self._waiters.append(waiter)
        await waiter

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()


class MultiplexedUnaryCall(MultiplexedCall):
    """A call with one response, which awaiting it returns."""

    def __await__(self) -> Generator[Any, None, Any]:
        return self._response().__await__()

    async def _response(self) -> Any:
        response = await self.read()
        if response is grpc.aio.EOF:
            nothing = grpc.aio.Metadata()
            message = "the call ended without a response"
            raise grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, nothing, nothing, message)
        return response
