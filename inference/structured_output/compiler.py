"""Compiles the constraints of requests within limits, and keeps the results by content.

A process without other duties compiles each new constraint first, in a fork that the limits or the
end of its requests kill (`inference.structured_output.compile_server`). What has passed there is
compiled again in a thread of the engine's process, which takes the same time and memory: matchers
cannot be passed between processes.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

from inference.engine.errors import EngineUnavailable, InvalidSamplingParams, SequenceFailed
from inference.engine.threads import available_cpus
from inference.structured_output.compile_server import MAX_MASK_SECONDS, STACK_BYTES
from inference.structured_output.constraint import invalid_constraint
from inference.structured_output.vocabulary import Compiled, Vocabulary
from mesh.protocol.constraints import ConstraintForm, OutputConstraint, SchemaRule

logger = logging.getLogger(__name__)

MAX_FORKS = min(4, max(2, available_cpus()))
"""Most constraints that compile at once in each lane."""

MAX_FORKS_PER_KEY = MAX_FORKS // 2
"""Most of them for requests with one API key."""

QUICK_SECONDS = 0.1
"""CPU time of the first attempt, in a lane where no constraint waits for a slow one."""

MAX_RESPONSE_BYTES = 2**25

MAX_SEARCH_SECONDS = 3.0
"""Time to find the schema that makes a grammar exceed a limit, to name it in the error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileLimits:
    """What compiling one constraint may take."""

    max_seconds: float = 0.8
    """CPU time."""
    max_bytes: int = 128 * 2**20
    """Memory in addition to the vocabulary."""


class _Compilation:
    """One compilation, which ends when no request waits for it any more."""

    def __init__(self, task: asyncio.Task[Compiled]) -> None:
        self.task = task
        self.num_waiting = 0


class ConstraintCompiler:
    """Fills a vocabulary's cache. For one event loop; the process starts with the first call."""

    def __init__(self, vocabulary: Vocabulary, limits: CompileLimits) -> None:
        self._vocabulary = vocabulary
        self._limits = limits
        self._server: _Server | None = None
        self._starting = asyncio.Lock()
        self._is_closed = False
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="constraints")
        self._compilations: dict[OutputConstraint, _Compilation] = {}
        self._quick, self._slow = _Lane(), _Lane()

    async def compile(self, constraint: OutputConstraint, key: str) -> Compiled:
        """The outcome for a constraint of a request with an API key, for `Vocabulary.new_matcher`.

        Requests with the same constraint share one compilation. An invalid constraint, or one that
        exceeds a limit, is kept as an error, which `Vocabulary.new_matcher` raises. Raises
        `EngineUnavailable` if the compiling process cannot run, or if `close` ends it;
        `SequenceFailed` if the system kills the compilation; `InvalidSamplingParams` if constraints
        are not supported.
        """
        compiled = self._vocabulary.kept(constraint)
        if compiled is not None:
            return compiled
        compilation = self._compilations.get(constraint)
        if compilation is None:
            task = asyncio.create_task(self._compile(constraint, key), name="compile constraint")
            compilation = self._compilations[constraint] = _Compilation(task)
            task.add_done_callback(lambda _: self._forget(constraint, task))
        compilation.num_waiting += 1
        try:
            return await asyncio.shield(compilation.task)
        except asyncio.CancelledError as error:
            if self._is_closed and compilation.task.cancelled():
                raise EngineUnavailable("the engine has stopped") from error
            raise
        finally:
            compilation.num_waiting -= 1
            if not compilation.num_waiting:
                self._forget(constraint, compilation.task)
                compilation.task.cancel()

    async def close(self) -> None:
        """Ends the compilations and the process."""
        self._is_closed = True
        tasks = [compilation.task for compilation in self._compilations.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._server is not None:
            await self._server.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _forget(self, constraint: OutputConstraint, task: asyncio.Task[Compiled]) -> None:
        compilation = self._compilations.get(constraint)
        if compilation is not None and compilation.task is task:
            del self._compilations[constraint]

    async def _compile(self, constraint: OutputConstraint, key: str) -> Compiled:
        response = await self._attempt(constraint, key, QUICK_SECONDS, self._quick)
        if response.get("limit") == "time" and self._limits.max_seconds > QUICK_SECONDS:
            seconds = self._limits.max_seconds
            response = await self._attempt(constraint, key, seconds, self._slow)
        if response.get("limit") == "killed":
            # The system was out of memory, which says nothing about the constraint.
            logger.warning("constraint compilation was killed")
            raise SequenceFailed("compiling the constraint was interrupted by the system")
        if "grammar" not in response:
            rule = await self._exceeding_rule(constraint, key) if "limit" in response else None
            return self._vocabulary.reject(constraint, self._error(constraint, response, rule))
        loop = asyncio.get_running_loop()
        num_bytes = max(response["num_bytes"], len(response["grammar"]))
        try:
            return await loop.run_in_executor(
                self._threads,
                self._vocabulary.compile,
                constraint,
                response["grammar"],
                num_bytes,
            )
        except InvalidSamplingParams as error:
            return self._vocabulary.reject(constraint, error)

    async def _attempt(
        self, constraint: OutputConstraint, key: str, max_seconds: float, lane: _Lane
    ) -> dict[str, Any]:
        async with lane.slot(key):
            server = await self._running_server()
            return await server.compile(constraint, min(max_seconds, self._limits.max_seconds))

    async def _exceeding_rule(self, constraint: OutputConstraint, key: str) -> SchemaRule | None:
        """The first rule of a grammar whose schema exceeds a limit alone; None if none does."""
        try:
            async with asyncio.timeout(MAX_SEARCH_SECONDS):
                for rule in constraint.schema_rules:
                    alone = OutputConstraint(ConstraintForm.JSON_SCHEMA, rule.json_schema)
                    seconds = self._limits.max_seconds
                    if "limit" in await self._attempt(alone, key, seconds, self._slow):
                        return rule
        except TimeoutError:
            pass
        return None

    def _error(
        self, constraint: OutputConstraint, response: dict[str, Any], rule: SchemaRule | None = None
    ) -> InvalidSamplingParams:
        if "error" in response:
            return InvalidSamplingParams(response["error"], field=response["field"])
        limits = self._limits
        problems = {
            "time": f"must compile within {limits.max_seconds:g} s of CPU time, and does not",
            "memory": f"must compile within {limits.max_bytes >> 20} MiB of memory, and does not",
            "depth": f"must compile within {STACK_BYTES >> 20} MiB of stack, and does not",
            "mask": f"must give the mask of a token within {MAX_MASK_SECONDS:g} s of CPU time, and "
            "does not",
        }
        logger.info("constraint exceeds a limit", extra={"limit": response["limit"]})
        return invalid_constraint(constraint, problems[response["limit"]], rule)

    async def _running_server(self) -> _Server:
        async with self._starting:
            if self._server is None or self._server.has_ended:
                if self._server is not None:
                    await self._server.close()
                self._server = await _Server.start(self._vocabulary, self._limits)
            return self._server


class _Lane:
    """Places for forks, of which one API key takes a part."""

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(MAX_FORKS)
        self._key_slots: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    @asynccontextmanager
    async def slot(self, key: str) -> AsyncIterator[None]:
        """Holds a place for a request with this API key."""
        of_key = self._key_slots.setdefault(key, asyncio.Semaphore(MAX_FORKS_PER_KEY))
        async with of_key, self._slots:
            yield


class _Server:
    """The compiling process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._numbers = itertools.count(1)
        self._responses: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._reading = asyncio.create_task(self._read(), name="compiled constraints")

    @classmethod
    async def start(cls, vocabulary: Vocabulary, limits: CompileLimits) -> _Server:
        """Starts the process. Raises `EngineUnavailable`."""
        given = (vocabulary.source, limits.max_bytes)
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "inference.structured_output.compile_server",
                *map(json.dumps, given),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=MAX_RESPONSE_BYTES,
                env={"PYTHONPATH": ":".join(sys.path)},
                # A terminal's Ctrl-C is for the engine, which then ends this process.
                start_new_session=True,
            )
        except OSError as error:
            logger.exception("constraint compiler cannot start")
            raise EngineUnavailable("the constraint compiler cannot start") from error
        return cls(process)

    @property
    def has_ended(self) -> bool:
        return self._reading.done()

    async def compile(self, constraint: OutputConstraint, max_seconds: float) -> dict[str, Any]:
        """The response for a constraint; cancelling the call ends its fork."""
        number = next(self._numbers)
        with self._response(number) as response:
            self._send({"id": number, "constraint": constraint, "max_seconds": max_seconds})
            try:
                return await response
            except asyncio.CancelledError:
                self._send({"cancel": number})
                raise

    async def close(self) -> None:
        """Ends the process and waits for it; the end of its input ends its forks."""
        assert self._process.stdin is not None, "opened with a pipe"
        self._process.stdin.close()
        await self._reading
        await self._process.wait()

    @contextmanager
    def _response(self, number: int) -> Iterator[asyncio.Future[dict[str, Any]]]:
        if self.has_ended:
            raise EngineUnavailable("the constraint compiler has ended")
        self._responses[number] = asyncio.get_running_loop().create_future()
        try:
            yield self._responses[number]
        finally:
            del self._responses[number]

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None, "opened with a pipe"
        if not self._process.stdin.is_closing():
            self._process.stdin.write(json.dumps(message).encode() + b"\n")

    async def _read(self) -> None:
        assert self._process.stdout is not None, "opened with a pipe"
        async for line in self._process.stdout:
            response = json.loads(line)
            waiting = self._responses.get(response["id"])
            if waiting is not None and not waiting.done():
                waiting.set_result(response)
        for waiting in self._responses.values():
            if not waiting.done():
                waiting.set_exception(EngineUnavailable("the constraint compiler has ended"))
