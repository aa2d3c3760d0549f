"""The parent of the worker processes: forks one on request, and reports why one ended.

A process without threads, so that it can fork safely and within a few milliseconds; the service
itself, whose threads belong to gRPC and to the tokenizer, must not fork.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import socket
import sys
import traceback
from typing import NoReturn

from tokenizer.chat.template import InvalidTemplateError
from tokenizer.rendering.frames import Frame, Kind, receive_frame, send_frame
from tokenizer.rendering.prompt_renderer import PromptRenderer
from tokenizer.rendering.requests import RenderLimits, Start
from tokenizer.rendering.worker import limit_memory, serve

MAX_START_BYTES = 1 << 30
MAX_COMMAND_BYTES = 64
START_CPU_SECONDS = 10.0
"""Maximum CPU time to compile the templates."""


class Supervisor:
    """Forks and ends worker processes as the service requests it."""

    def __init__(
        self, service: socket.socket, renderer: PromptRenderer, limits: RenderLimits
    ) -> None:
        self._service = service
        self._renderer = renderer
        self._limits = limits
        self._workers: set[int] = set()

    def run(self) -> None:
        """Obeys the service until it closes its socket; then ends all workers."""
        try:
            while True:
                command = receive_frame(self._service, MAX_COMMAND_BYTES)
                if command.kind is Kind.FORK:
                    self._fork()
                else:
                    status = self._end(int(command.content))
                    send_frame(self._service, Frame(Kind.RESULT, str(status).encode()))
        except EOFError:
            for pid in list(self._workers):
                self._end(pid)

    def _fork(self) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            pid = os.fork()
            if pid == 0:
                self._service.close()
                ours.close()
                _run_worker(self._renderer, self._limits, theirs)
            self._workers.add(pid)
            socket.send_fds(self._service, [str(pid).encode()], [ours.fileno()])

    def _end(self, pid: int) -> int:
        """Kills a worker unless it has ended; returns its wait status."""
        assert pid in self._workers, "a worker is ended once"
        ended, status = os.waitpid(pid, os.WNOHANG)
        if not ended:
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
        self._workers.remove(pid)
        return status


def _run_worker(renderer: PromptRenderer, limits: RenderLimits, peer: socket.socket) -> NoReturn:
    """Never returns, so that nothing of the supervisor runs in the worker."""
    status = 1
    try:
        serve(renderer, limits, peer)
        status = 0
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        os._exit(status)


def main(descriptor: int) -> None:
    """Serves the socket with this file descriptor. Replies with REFUSAL for a bad template."""
    service = socket.socket(fileno=descriptor)
    start = Start.read(receive_frame(service, MAX_START_BYTES))
    try:
        renderer = _compiled(start)
    except InvalidTemplateError as error:
        send_frame(service, Frame(Kind.REFUSAL, str(error).encode()))
        sys.exit(1)
    send_frame(service, Frame(Kind.RESULT))
    Supervisor(service, renderer, start.limits).run()


def _compiled(start: Start) -> PromptRenderer:
    """Compiles the templates within limits: jinja2 evaluates their constant expressions."""
    unlimited = resource.getrlimit(resource.RLIMIT_AS)
    limit_memory(start.limits.memory_bytes)
    signal.setitimer(signal.ITIMER_PROF, START_CPU_SECONDS)
    renderer = PromptRenderer(start.format)
    signal.setitimer(signal.ITIMER_PROF, 0)
    resource.setrlimit(resource.RLIMIT_AS, unlimited)
    # The workers share these objects as long as their reference counts are not written.
    gc.collect()
    gc.freeze()
    return renderer
