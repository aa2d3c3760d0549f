"""The service's side of the worker processes. Blocking and thread-safe."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from mesh.errors import INTERNAL_MESSAGE, ErrorKind, MeshError, invalid
from mesh.process.lifecycle import StartupError
from tokenizer.chat.prompt_format import PromptFormat
from tokenizer.chat.rendered_prompt import RenderedPrompt
from tokenizer.rendering.frames import Frame, Kind, receive_frame, send_frame
from tokenizer.rendering.requests import RenderLimits, RenderRequest, Start

logger = logging.getLogger("tokenizer.rendering")

POLL_SECONDS = 0.05
"""Time after which a cancelled or endless rendering is noticed and its worker killed."""

WALL_CLOCK_RATIO = 10
"""Maximum time of a rendering, relative to its CPU time: a worker may wait for a CPU."""

START_SECONDS = 60.0
"""Maximum time to start the supervisor and to examine the templates."""

_MAX_BYTES_PER_CHARACTER = 16
"""UTF-8 has at most 4 bytes; a control token of one character is a segment with a length."""

_MAIN = (
    "import sys; sys.path[:] = {path!r}; "
    "from tokenizer.rendering.supervisor import main; main({descriptor})"
)


class WorkerEnded(Exception):
    """A worker process has ended during a request; `status` is its wait status."""

    def __init__(self, status: int) -> None:
        super().__init__(f"wait status {status}")
        self.signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


class _Worker(NamedTuple):
    pid: int
    peer: socket.socket
    supervisor: _Supervisor
    """Its parent, the only process that may end it: another one may have reused the pid."""

    @property
    def has_ended(self) -> bool:
        """Whether the process of an idle worker has ended."""
        self.peer.settimeout(0)
        try:
            return not self.peer.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        finally:
            self.peer.settimeout(POLL_SECONDS)


class RenderWorkers:
    """Renders conversations in processes that are killed when they exceed a limit."""

    def __init__(self, format: PromptFormat, limits: RenderLimits) -> None:
        """Starts the processes. Blocks. Raises StartupError. The caller must call `close`."""
        self._start = Start(format, limits)
        self._limits = limits
        self._max_bytes = _MAX_BYTES_PER_CHARACTER * limits.max_characters + (1 << 16)
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._supervisor = _Supervisor(self._start)
        self._capabilities = self._find_capabilities()

    @property
    def num_idle(self) -> int:
        """Number of workers that wait for a request."""
        return len(self._idle)

    def render(self, chat: bytes, is_cancelled: Callable[[], bool]) -> RenderedPrompt:
        """Renders a serialized ChatPrompt.

        Raises MeshError: INVALID_REQUEST if the template rejects the conversation or exceeds a
        limit, CANCELLED soon after `is_cancelled()`, UNAVAILABLE if the worker was killed from
        outside.
        """
        wait = _Wait(WALL_CLOCK_RATIO * self._limits.cpu_seconds, is_cancelled)
        try:
            reply = self._call(RenderRequest(self._capabilities, chat).frame(), wait.check)
        except WorkerEnded as ended:
            raise self._failure(ended) from None
        except _OutOfTime:
            raise self._out_of_time() from None
        if reply.kind is Kind.REFUSAL:
            param, message = json.loads(reply.content)
            raise invalid(str(param), str(message))
        return RenderedPrompt.from_bytes(reply.content)

    def close(self) -> None:
        """Ends all processes. No rendering may run."""
        for worker in self._idle:
            worker.peer.close()
        self._idle.clear()
        self._supervisor.close()

    def _find_capabilities(self) -> bytes:
        """What the templates render; the template of a model that cannot be examined is trusted."""
        wait = _Wait(START_SECONDS, lambda: False)
        try:
            return self._call(Frame(Kind.FIND_CAPABILITIES), wait.check).content
        except (WorkerEnded, _OutOfTime) as error:
            logger.warning("chat template not examined", extra={"error": repr(error)})
            return b"{}"

    def _call(self, request: Frame, on_timeout: Callable[[], None]) -> Frame:
        """Sends a request to an idle or a new worker. Raises WorkerEnded, or as `on_timeout`."""
        worker = self._take()
        is_idle = False
        try:
            send_frame(worker.peer, request, on_timeout)
            reply = receive_frame(worker.peer, self._max_bytes, on_timeout)
            is_idle = True
        except (EOFError, OSError):
            raise WorkerEnded(self._end(worker)) from None
        except ValueError as error:
            logger.error("worker violated the protocol", extra={"error": str(error)})
            raise WorkerEnded(self._end(worker)) from None
        except BaseException:
            self._end(worker)
            raise
        finally:
            if is_idle:
                with self._lock:
                    self._idle.append(worker)
        return reply

    def _take(self) -> _Worker:
        while True:
            with self._lock:
                if not self._idle:
                    return self._fork()
                worker = self._idle.pop()
            if not worker.has_ended:
                return worker
            self._end(worker)

    def _fork(self) -> _Worker:
        """A new worker; restarts the supervisor if it has ended. The caller has the lock."""
        try:
            return self._supervisor.fork()
        except (OSError, EOFError) as error:
            logger.error("supervisor ended, restarting", extra={"error": repr(error)})
            self._supervisor.close()
            self._supervisor = _Supervisor(self._start)
            return self._supervisor.fork()

    def _end(self, worker: _Worker) -> int:
        """Kills a worker; returns its wait status."""
        worker.peer.close()
        with self._lock:
            try:
                return worker.supervisor.end(worker.pid)
            except (OSError, EOFError):
                return signal.SIGKILL  # the supervisor has ended, and its workers with it

    def _failure(self, ended: WorkerEnded) -> MeshError:
        if ended.signal == signal.SIGPROF:
            return self._out_of_time()
        logger.error("worker ended", extra={"signal": ended.signal})
        if ended.signal == signal.SIGKILL:
            message = "the worker that rendered the chat template was killed"
            return MeshError(ErrorKind.UNAVAILABLE, message, retry_after=1.0)
        if ended.signal:
            return invalid("messages", "the model's chat template cannot render these messages")
        return MeshError(ErrorKind.INTERNAL, INTERNAL_MESSAGE)

    def _out_of_time(self) -> MeshError:
        seconds = self._limits.cpu_seconds
        return invalid(
            "messages", f"messages must render within {seconds:g} s of CPU time, took longer"
        )


class _OutOfTime(Exception):
    """A rendering takes too long by the wall clock."""


class _Wait:
    """Checked while a worker renders."""

    def __init__(self, seconds: float, is_cancelled: Callable[[], bool]) -> None:
        self._deadline = time.monotonic() + seconds
        self._is_cancelled = is_cancelled

    def check(self) -> None:
        """Raises MeshError (CANCELLED) or _OutOfTime."""
        if self._is_cancelled():
            raise MeshError(ErrorKind.CANCELLED, "the client cancelled the call")
        if time.monotonic() > self._deadline:
            raise _OutOfTime


class _Supervisor:
    """The process that forks the workers. Not thread-safe."""

    def __init__(self, start: Start) -> None:
        """Blocks until the templates are compiled. Raises StartupError."""
        self._peer, theirs = socket.socketpair()
        with theirs:
            code = _MAIN.format(path=sys.path, descriptor=theirs.fileno())
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                # Ctrl-C signals the whole group; the drain needs the workers until its end.
                start_new_session=True,
            )
        self._peer.settimeout(START_SECONDS)
        try:
            send_frame(self._peer, start.frame(), _timed_out)
            reply = receive_frame(self._peer, 1 << 16, _timed_out)
        except (EOFError, OSError, TimeoutError) as error:
            self.close()
            raise StartupError(
                "the chat templates cannot be compiled within the limits of CPU time and memory"
            ) from error
        if reply.kind is Kind.REFUSAL:
            self.close()
            raise StartupError(reply.content.decode())

    def fork(self) -> _Worker:
        """Starts a worker. Raises OSError or EOFError if the supervisor has ended."""
        send_frame(self._peer, Frame(Kind.FORK), _timed_out)
        pid, descriptors, _, _ = socket.recv_fds(self._peer, 32, 1)
        if not descriptors:
            raise EOFError
        peer = socket.socket(fileno=descriptors[0])
        peer.settimeout(POLL_SECONDS)
        return _Worker(int(pid), peer, self)

    def end(self, pid: int) -> int:
        """Kills a worker unless it has ended; returns its wait status. Raises as `fork` does."""
        send_frame(self._peer, Frame(Kind.END, str(pid).encode()), _timed_out)
        return int(receive_frame(self._peer, 32, _timed_out).content)

    def close(self) -> None:
        """Ends the supervisor, and with it its workers."""
        self._peer.close()
        self._process.kill()
        self._process.wait()


def _timed_out() -> None:
    raise TimeoutError("the supervisor does not answer")
