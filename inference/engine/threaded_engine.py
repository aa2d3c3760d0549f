"""A thread that loads a model and runs its steps, supervised from an event loop.

event loop                              thread
command ──────────────▶ commands ─────▶ run_step, again and again
callbacks ◀──call_soon_threadsafe────── what a step gave
"""

from __future__ import annotations

import asyncio
import logging
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Generic, Protocol, TypeVar

from inference.api import metrics
from inference.engine.errors import EngineUnavailable
from inference.engine.threads import lower_priority, stack_of
from inference.engine.watchdog import STEP_TIMEOUT_SECONDS, StepClock, StepState, Watchdog
from mesh.process import cpu_scheduling

logger = logging.getLogger(__name__)

STOP_SECONDS = 10.0
"""Most seconds that `stop` waits for the running step."""


class Steps(Protocol):
    """What the thread runs."""

    @property
    def clock(self) -> StepClock:
        """The times of the steps."""
        ...

    @property
    def healthy(self) -> bool:
        """False once no further step can be expected to work."""
        ...

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        ...

    def mark_broken(self) -> None:
        """Make it unhealthy."""
        ...


Model = TypeVar("Model", bound=Steps)
Command = TypeVar("Command")


class ThreadedEngine(ABC, Generic[Model, Command]):
    """Start, stop, health and commands of an engine. The thread sleeps while it is idle."""

    def __init__(
        self,
        load: Callable[[], Model],
        *,
        name: str,
        on_cpu: bool,
        step_timeout: float = STEP_TIMEOUT_SECONDS,
    ) -> None:
        """`load` makes the model, in the thread; it may raise EngineError.

        `name` is the thread's. `on_cpu`: the forward pass runs on CPU threads.
        `step_timeout` is the `min_seconds` of the watchdog.
        """
        self._load_model = load
        self._name = name
        self._on_cpu = on_cpu
        self._step_timeout = step_timeout
        self._model: Model | None = None
        self._commands: deque[Command] = deque()
        self._wake = threading.Condition()
        self._closed: EngineUnavailable | None = None
        """Set when the thread has taken its last commands: the reason to refuse others."""
        self._stopping = False
        self._draining = False
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = asyncio.Event()
        self._health_changed = asyncio.Event()
        self._watchdog: Watchdog | None = None
        self._watching: asyncio.Task[None] | None = None

    @property
    def healthy(self) -> bool:
        model, thread = self._model, self._thread
        alive = model is not None and model.healthy and thread is not None and thread.is_alive()
        return alive and self._step_returns

    async def health_changes(self) -> AsyncIterator[bool]:
        while not self._ended.is_set():
            self._health_changed.clear()
            yield self.healthy
            await self._health_changed.wait()

    async def start(self) -> None:
        assert self._thread is None, "started twice"
        self._loop = asyncio.get_running_loop()
        loaded: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(
            target=self._run, args=(loaded,), name=self._name, daemon=True
        )
        self._thread.start()
        await loaded
        clock = self._started().clock
        self._watchdog = Watchdog(clock, self._step_timeout, self._step_state_changed)
        self._watching = asyncio.create_task(self._watchdog.run(), name="watchdog")

    async def stop(self, *, drain_timeout: float = 0.0) -> None:
        self._draining = True
        if self._model is not None and drain_timeout > 0:
            await self._wait_empty(drain_timeout)
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        if self._thread is not None:
            # A stuck step does not end; the thread is a daemon, so that the process does.
            seconds = STOP_SECONDS if self._step_returns else 0.0
            await asyncio.to_thread(self._thread.join, seconds)
            if self._thread.is_alive():
                logger.error("engine thread does not stop", extra={"stack": stack_of(self._thread)})
            # Let the loop run the callbacks that the thread scheduled last.
            await asyncio.sleep(0)

    @abstractmethod
    async def _wait_empty(self, seconds: float) -> None:
        """Wait until no call is live, at most this long."""

    @abstractmethod
    def _num_live(self) -> int:
        """Calls that wait for the thread."""

    @abstractmethod
    def _end_all(self, cause: EngineUnavailable) -> None:
        """End every call without the thread, whose step does not return."""

    @abstractmethod
    def _run_step(self, model: Model, commands: Sequence[Command]) -> None:
        """Run the commands and, where there is work, a step. In the thread."""

    @abstractmethod
    def _close(self, model: Model, commands: Sequence[Command], cause: EngineUnavailable) -> None:
        """Run the last commands, then end every call. In the thread."""

    @property
    def _accepts_work(self) -> bool:
        return not self._draining and self.healthy

    @property
    def _step_returns(self) -> bool:
        return self._watchdog is None or self._watchdog.state is StepState.RETURNING

    def _started(self) -> Model:
        if self._model is None:
            raise EngineUnavailable("the engine is not started")
        return self._model

    def _command(self, command: Command) -> bool:
        """Pass a command to the thread; False if the thread has closed."""
        with self._wake:
            if self._closed is not None:
                return False
            self._commands.append(command)
            self._wake.notify()
            return True

    def _call(self, callback: Callable[[], None]) -> None:
        """Run a callback on the event loop, from the thread."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            logger.warning("the event loop closed before the engine stopped")

    def _step_state_changed(self, state: StepState) -> None:
        """Handle a new state of the running step; called by the watchdog."""
        assert self._watchdog is not None
        assert self._thread is not None
        fields = {
            "seconds": self._watchdog.age_seconds,
            "num_calls": self._num_live(),
            "stack": stack_of(self._thread),
        }
        if state is StepState.RETURNING:
            logger.warning("stuck step has returned")
        elif state is StepState.STUCK:
            logger.error("step does not return, its calls are aborted", extra=fields)
            metrics.STUCK_STEPS.inc()
            self._end_all(EngineUnavailable("a step of the engine does not return"))
        else:
            logger.error("step is lost", extra=fields)
            self._ended.set()
        self._health_changed.set()

    # The methods below run in the thread.

    def _run(self, loaded: asyncio.Future[None]) -> None:
        # Threads that serve requests have priority over threads that compute. The threads of the
        # native code inherit both settings.
        cpu_scheduling.reset_slice()
        if self._on_cpu:
            lower_priority()
        try:
            self._model = model = self._load_model()
        except BaseException as error:
            failure = error
            self._call(lambda: _end(loaded, failure))
            return
        self._call(lambda: _end(loaded, None))
        try:
            while self._take_turn(model):
                pass
        except Exception:
            logger.exception("the engine broke")
            model.mark_broken()
        cause = EngineUnavailable("the engine has stopped" if model.healthy else "the engine broke")
        with self._wake:
            commands, self._commands = self._commands, deque()
            self._closed = cause
        self._close(model, commands, cause)
        self._call(self._ended.set)
        self._call(self._health_changed.set)

    def _take_turn(self, model: Model) -> bool:
        """Wait for commands or work, then run a step; False if the thread should end."""
        with self._wake:
            while not (self._commands or model.has_work or self._stopping):
                self._wake.wait()
            if self._stopping:
                return False
            commands, self._commands = self._commands, deque()
        self._run_step(model, commands)
        return model.healthy


def _end(loaded: asyncio.Future[None], error: BaseException | None) -> None:
    if loaded.done():
        return
    if error is None:
        loaded.set_result(None)
    else:
        loaded.set_exception(error)
