"""The handlers' side: runs the calls of multiplexed streams, with the handlers of plain calls."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from mesh.rpc.multiplex.wire import (
    BATCH_SECONDS,
    MAX_BATCH_BYTES,
    MAX_PART_BYTES,
    MESSAGE_COST_BYTES,
    MULTIPLEXED_PATHS,
    WINDOW_BYTES,
    MetadataItem,
    metadata_from_proto,
    metadata_to_proto,
)
from mesh.rpc.transport import MAX_MESSAGE_BYTES
from mesh.v1 import multiplex_pb2, multiplex_pb2_grpc

if TYPE_CHECKING:  # generic in the stubs only
    Handler = grpc.RpcMethodHandler[Any, Any]
    Context = grpc.aio.ServicerContext[Any, Any]

logger = logging.getLogger("mesh.rpc.multiplex")

HandlerOf = Callable[[str], "Handler | None"]

MAX_TIMEOUT_SECONDS = 366 * 24 * 3600.0
"""A later deadline is none; timers do not take any number."""


class BrokenRuleError(Exception):
    """The caller uses the stream in a way that its contract forbids."""


class MultiplexService:
    """Accepts streams and runs their calls."""

    def __init__(self, handler_of: HandlerOf) -> None:
        """`handler_of` finds the handler of a path, such as `/mesh.v1.InferenceService/Generate`.

        It is one for a single request; None: there is none.
        """
        self._handler_of = handler_of

    def add_to(self, registrar: Any) -> None:
        """Registers the service with a server, or with what registers for one."""
        service: Any = self
        multiplex_pb2_grpc.add_MultiplexServiceServicer_to_server(service, registrar)

    async def Multiplex(
        self, request_iterator: AsyncIterator[multiplex_pb2.MultiplexRequest], context: Context
    ) -> None:
        """Serves one stream to its end."""
        try:
            await ServedStream(self._handler_of, context).run(request_iterator)
        except BrokenRuleError as error:
            logger.warning("multiplexed stream ended", extra={"error": str(error)})
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))


class ServedStream:
    """One stream and its running calls."""

    def __init__(self, handler_of: HandlerOf, context: Context) -> None:
        self._handler_of = handler_of
        self._context = context
        self._calls: dict[int, ServedCall] = {}
        self._batch = multiplex_pb2.MultiplexResponse()
        self._batch_bytes = 0
        self._pending = asyncio.Event()
        self._sending = False
        self._sent = asyncio.Event()
        self._waiting: list[Callable[[], None]] = []

    async def run(self, requests: AsyncIterator[multiplex_pb2.MultiplexRequest]) -> None:
        """Serves until the caller ends the stream or is lost, which cancels the calls."""
        task = asyncio.current_task()
        assert task is not None
        sending = asyncio.create_task(self._send(task), name="send multiplexed responses")
        try:
            async for request in requests:
                for begin in request.begins:
                    self._begin(begin)
                for credit in request.credits:
                    if (call := self._calls.get(credit.call_id)) is not None:
                        call.grant(credit.num_bytes)
                for call_id in request.cancelled:
                    if (call := self._calls.get(call_id)) is not None:
                        call.cancel()
        finally:
            calls = list(self._calls.values())
            tasks = [call.task for call in calls]
            sending.cancel()
            for call in calls:
                call.cancel()
            await asyncio.gather(sending, *tasks, return_exceptions=True)

    async def _send(self, serving: asyncio.Task[Any]) -> None:
        try:
            paths = sorted(path for path in MULTIPLEXED_PATHS if self._handler_of(path))
            await self._context.write(multiplex_pb2.MultiplexResponse(paths=paths))
            while True:
                await self._pending.wait()
                self._pending.clear()
                batch, self._batch = self._batch, multiplex_pb2.MultiplexResponse()
                self._batch_bytes = 0
                self._sending = True
                await self._context.write(batch)
                await asyncio.sleep(BATCH_SECONDS)
                self._sending = False
                sent, self._sent = self._sent, asyncio.Event()
                sent.set()
                waiting, self._waiting = self._waiting, []
                for callback in waiting:
                    callback()
        except grpc.aio.BaseError:
            serving.cancel()  # gRPC does not always cancel a handler whose caller has gone

    def _begin(self, begin: multiplex_pb2.CallBegin) -> None:
        handler = self._handler_of(begin.path) if begin.path in MULTIPLEXED_PATHS else None
        if begin.call_id in self._calls:
            raise BrokenRuleError(f"call_id {begin.call_id} is that of a running call")
        if handler is None:
            self.end(begin.call_id, grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
            return
        self._calls[begin.call_id] = ServedCall(self, begin, handler)

    async def write(self, call_id: int, data: bytes, more: bool, last: object) -> object:
        """Adds a message to the next batch; waits until it may. Returns the batch.

        `last`: the batch with the call's last message. While a batch is being sent, the next one
        takes one message of each call: what a call has more then waits, and can grow.
        """
        while not self.takes(last):
            await self._sent.wait()
        return self.add(call_id, data, more)

    def takes(self, last: object) -> bool:
        """Whether the next batch takes a message of a call now; `last` as in `write`."""
        return self._batch_bytes < MAX_BATCH_BYTES and not (self._sending and last is self._batch)

    def when_sent(self, callback: Callable[[], None]) -> bool:
        """Calls `callback` when the batch has been sent that is being sent now.

        Returns False if there is none, or if the next one is full already.
        """
        if not self._sending or self._batch_bytes >= MAX_BATCH_BYTES:
            return False
        self._waiting.append(callback)
        return True

    def add(self, call_id: int, data: bytes, more: bool) -> object:
        """Adds a message to the next batch, which must take it. Returns the batch."""
        message = self._batch.messages.add()  # its keywords take half as long again
        message.call_id, message.data, message.more = call_id, data, more
        self._batch_bytes += len(data)
        self._pending.set()
        return self._batch

    def end(
        self,
        call_id: int,
        code: grpc.StatusCode,
        details: str = "",
        trailing_metadata: Sequence[MetadataItem] = (),
    ) -> None:
        """Adds the end of a call to the next batch."""
        number: int = code.value[0]
        self._batch.ends.add(
            call_id=call_id,
            code=number,
            # A lone surrogate cannot be sent, and the call must end.
            details=details.encode(errors="replace").decode(),
            trailing_metadata=metadata_to_proto(trailing_metadata),
        )
        self._pending.set()

    def left(self, call_id: int) -> None:
        """Forgets a call that has ended."""
        del self._calls[call_id]


class ServedCall:
    """One call: the context that its handler gets, as far as handlers use it."""

    def __init__(
        self, stream: ServedStream, begin: multiplex_pb2.CallBegin, handler: Handler
    ) -> None:
        self._stream = stream
        self._id = begin.call_id
        self._handler = handler
        self._serialize: Any = handler.response_serializer
        self._metadata = metadata_from_proto(begin.metadata)
        self._credit = WINDOW_BYTES
        self._granted = asyncio.Event()
        self._batch: object = None
        self._status: tuple[grpc.StatusCode, str, Sequence[MetadataItem]] = (
            grpc.StatusCode.OK,
            "",
            (),
        )
        self._started = False
        self._cancelled = False
        self._cancelling = False
        self._deadline: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.task = asyncio.create_task(self._run(begin.request))
        if begin.HasField("timeout"):
            # Also for what is no number.
            timeout = min(begin.timeout, MAX_TIMEOUT_SECONDS) if begin.timeout > 0 else 0.0
            self._deadline = time.monotonic() + timeout
            self._timer = asyncio.get_running_loop().call_later(timeout, self._expire)

    def invocation_metadata(self) -> Sequence[MetadataItem]:
        """The call's metadata."""
        return self._metadata

    def time_remaining(self) -> float | None:
        """Seconds to the deadline; None without one."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    async def write(self, response: object) -> None:
        """Sends a response; waits for the reader's credit and for the transport."""
        data: bytes = self._serialize(response)
        if len(data) > MAX_MESSAGE_BYTES:
            limit = f"a message has {len(data)} bytes, at most {MAX_MESSAGE_BYTES} are allowed"
            await self.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, limit)
        if len(data) <= MAX_PART_BYTES:
            await self._write_part(data, more=False)
            return
        for begin in range(0, len(data), MAX_PART_BYTES):
            end = begin + MAX_PART_BYTES
            await self._write_part(data[begin:end], more=end < len(data))

    @property
    def takes_now(self) -> bool:
        """Whether `write_now` may be called: the reader and the transport take a message."""
        return self._credit > 0 and self._stream.takes(self._batch)

    def when_sent(self, callback: Callable[[], None]) -> bool:
        """If only the message before is in the way: calls `callback` when it leaves, and is True.

        Tasks of other calls can take the room before.
        """
        return self._credit > 0 and self._stream.when_sent(callback)

    def write_now(self, response: object) -> bool:
        """Sends a response without waiting; `takes_now` must be true.

        False, and nothing is sent, if it needs several parts.
        """
        data: bytes = self._serialize(response)
        if len(data) > MAX_PART_BYTES:
            return False
        self._credit -= len(data) + MESSAGE_COST_BYTES
        self._batch = self._stream.add(self._id, data, False)
        return True

    async def _write_part(self, data: bytes, *, more: bool) -> None:
        while self._credit <= 0:
            self._granted.clear()
            await self._granted.wait()
        self._credit -= len(data) + MESSAGE_COST_BYTES
        self._batch = await self._stream.write(self._id, data, more, self._batch)

    async def abort(
        self,
        code: grpc.StatusCode,
        details: str = "",
        trailing_metadata: Sequence[MetadataItem] = (),
    ) -> NoReturn:
        """Ends the call with this status. Raises AbortError."""
        self._status = (code, details, trailing_metadata)
        raise grpc.aio.AbortError

    def grant(self, num_bytes: int) -> None:
        """Adds the credit of messages that the caller has read."""
        self._credit += num_bytes
        self._granted.set()

    def cancel(self) -> None:
        """Cancels the handler for the caller, which waits for no end."""
        self._cancelled = True
        self._cancel()

    def _expire(self) -> None:
        self._status = (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", ())
        self._cancel()

    def _cancel(self) -> None:
        if self._cancelling:
            return  # a second cancellation would interrupt what the handler does after the first
        self._cancelling = True
        self.task.cancel()
        if not self._started:  # then `_run` never runs
            self._started = True
            self._end()

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._stream.left(self._id)
        if not self._cancelled:
            self._stream.end(self._id, *self._status)

    async def _run(self, request: bytes) -> None:
        self._started = True
        try:
            await self._handle(request)
        except grpc.aio.AbortError:
            pass
        except asyncio.CancelledError:
            if self._status[0] is grpc.StatusCode.OK:
                self._status = (grpc.StatusCode.CANCELLED, "the call was cancelled", ())
        except Exception as error:
            logger.exception("unexpected error in a handler")
            self._status = (grpc.StatusCode.UNKNOWN, f"unexpected {type(error).__name__}", ())
        finally:
            self._end()

    async def _handle(self, request: bytes) -> None:
        handler: Any = self._handler
        try:
            message = handler.request_deserializer(request)
        except DecodeError:
            # As grpc.aio answers it.
            await self.abort(grpc.StatusCode.INTERNAL, "the request cannot be read")
        if handler.response_streaming:
            await handler.unary_stream(message, self)
        else:
            await self.write(await handler.unary_unary(message, self))
