"""A process that compiles constraints, each in a separate fork that a limit can end.

Neither the time nor the memory of a compilation can be limited inside the engine's process: the
grammar library has no such limits, and a thread cannot be ended. A fork has the vocabulary at once,
and one that is killed takes nothing with it.

The engine writes requests to the standard input and reads responses from the standard output, one
JSON object a line:

    {"id": 1, "constraint": ["json_schema", "{…}", []], "max_seconds": 0.1}
    {"id": 1, "grammar": "…", "num_bytes": 4096}      or "error" and "field", or "limit"
    {"cancel": 1}
"""

from __future__ import annotations

import json
import os
import random
import resource
import selectors
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, NoReturn

from inference.engine.errors import InvalidSamplingParams
from inference.structured_output.constraint import invalid_constraint
from inference.structured_output.matcher import Matcher
from inference.structured_output.vocabulary import Vocabulary, VocabularySource
from mesh.protocol.constraints import ConstraintForm, OutputConstraint, SchemaRule

NICENESS = 19
"""Lower priority than the engine's compute threads, which serve the other requests."""

STACK_BYTES = 4 * 2**20
"""Half of a thread's stack, so that what compiles here does not overflow the engine's."""

PROBED_TOKENS = 16
"""Tokens of a random output that follow the compilation; each must be quick as well."""

MAX_MASK_SECONDS = 0.25
"""Most CPU time of the mask of one token."""

_PAGE_BYTES = resource.getpagesize()
_STDIN, _STDOUT, _STDERR = 0, 1, 2


class _Request(NamedTuple):
    """A constraint, and the CPU time that compiling it may take."""

    constraint: OutputConstraint
    max_seconds: float


class _Fork:
    """A running compilation."""

    def __init__(self, number: int, process_id: int) -> None:
        self.number = number
        self.process_id = process_id
        self.output = b""


class CompileServer:
    """Starts a fork for each request and reports how it ended."""

    def __init__(self, max_bytes: int, vocabulary: Vocabulary) -> None:
        """`max_bytes` is the memory that one compilation may take."""
        self._max_bytes = max_bytes
        self._vocabulary = vocabulary
        self._selector = selectors.DefaultSelector()
        self._forks: dict[int, _Fork] = {}
        self._input = b""

    def run(self) -> None:
        """Serves until the engine closes the standard input, then ends what still runs."""
        self._selector.register(_STDIN, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                if key.fd == _STDIN:
                    if not self._read_requests():
                        self._end_all()
                        return
                else:
                    self._read_result(key.fd)

    def _read_requests(self) -> bool:
        data = os.read(_STDIN, 2**20)
        *lines, self._input = (self._input + data).split(b"\n")
        for line in lines:
            request = json.loads(line)
            if "cancel" in request:
                self._cancel(request["cancel"])
            else:
                form, text, rules = request["constraint"]
                schema_rules = tuple(SchemaRule(*rule) for rule in rules)
                constraint = OutputConstraint(ConstraintForm(form), text, schema_rules)
                self._start(request["id"], _Request(constraint, request["max_seconds"]))
        return bool(data)

    def _start(self, number: int, request: _Request) -> None:
        reader, writer = os.pipe()
        process_id = os.fork()
        if process_id == 0:
            self._compile(request, writer)
        os.close(writer)
        self._forks[reader] = _Fork(number, process_id)
        self._selector.register(reader, selectors.EVENT_READ)

    def _compile(self, request: _Request, writer: int) -> NoReturn:
        """In the fork: writes the result and ends."""
        try:
            self._set_limits(request.max_seconds)
            result = _outcome(self._vocabulary, request.constraint)
            with os.fdopen(writer, "wb") as file:
                file.write(json.dumps(result).encode())
        finally:
            os._exit(0)

    def _set_limits(self, max_seconds: float) -> None:
        null = os.open(os.devnull, os.O_RDWR)
        # The library writes a panic to the standard error, and that may quote the request.
        for number in (_STDIN, _STDOUT, _STDERR):
            os.dup2(null, number)
        with suppress(OSError):
            # Where memory runs out in spite of the limit, the kernel ends this process first.
            Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
            os.nice(NICENESS)
        signal.setitimer(signal.ITIMER_PROF, max_seconds)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_STACK, (STACK_BYTES, STACK_BYTES))
        most = _pages(0) * _PAGE_BYTES + self._max_bytes
        resource.setrlimit(resource.RLIMIT_AS, (most, most))

    def _read_result(self, reader: int) -> None:
        fork = self._forks[reader]
        data = os.read(reader, 2**20)
        fork.output += data
        if data:
            return
        self._selector.unregister(reader)
        os.close(reader)
        del self._forks[reader]
        _, status = os.waitpid(fork.process_id, 0)
        # A limit may end the fork while it writes.
        is_complete = fork.output and not os.WIFSIGNALED(status)
        result = json.loads(fork.output) if is_complete else {"limit": _limit(status)}
        line = json.dumps({"id": fork.number, **result}) + "\n"
        with os.fdopen(os.dup(_STDOUT), "wb") as file:
            file.write(line.encode())

    def _cancel(self, number: int) -> None:
        for fork in self._forks.values():
            if fork.number == number:
                os.kill(fork.process_id, signal.SIGKILL)

    def _end_all(self) -> None:
        for fork in self._forks.values():
            os.kill(fork.process_id, signal.SIGKILL)


def _outcome(vocabulary: Vocabulary, constraint: OutputConstraint) -> dict[str, object]:
    """The response for a constraint, without its id."""
    before = _pages(1)
    try:
        grammar = vocabulary.grammar(constraint)
        compiled = vocabulary.compile(constraint, grammar)
        is_quick, problem = _probe(vocabulary.new_matcher(constraint, compiled))
    except InvalidSamplingParams as error:
        return {"error": str(error), "field": error.field}
    except MemoryError:
        return {"limit": "memory"}
    except BaseException as error:  # a panic of the library, which is no Exception
        is_quick = True
        problem = invalid_constraint(constraint, f"cannot be compiled: {type(error).__name__}")
    if not is_quick:
        return {"limit": "mask"}
    if problem is None:
        return {"grammar": grammar, "num_bytes": (_pages(1) - before) * _PAGE_BYTES}
    return {"error": str(problem), "field": problem.field}


def _probe(matcher: Matcher) -> tuple[bool, InvalidSamplingParams | None]:
    """Follows a random output; returns whether each mask is quick, and the matcher's error."""
    rng = random.Random(1)
    for _ in range(PROBED_TOKENS):
        began = time.process_time()
        token_id = _allowed(matcher.raw.compute_bitmask(), rng)
        if token_id is not None and not matcher.raw.is_stopped():
            matcher.raw.consume_token(token_id)
        if time.process_time() - began > MAX_MASK_SECONDS:
            return False, None
        if token_id is None or matcher.raw.is_stopped() or matcher.raw.is_error():
            break
    return True, matcher.error


def _allowed(mask: bytes, rng: random.Random) -> int | None:
    """A token that a mask allows; None if there is none."""
    begin = rng.randrange(len(mask))
    rotated = mask[begin:] + mask[:begin]
    found = len(rotated) - len(rotated.lstrip(b"\0"))
    if found == len(rotated):
        return None
    byte = rotated[found]
    return (begin + found) % len(mask) * 8 + (byte & -byte).bit_length() - 1


def _limit(status: int) -> str:
    """The limit that ended a fork without a result, by its exit status; "killed" if none did."""
    match os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0:
        case signal.SIGPROF:
            return "time"
        case signal.SIGABRT:  # how Rust ends a process whose allocation fails
            return "memory"
        case signal.SIGSEGV | signal.SIGBUS:
            return "depth"
        case _:
            # By `cancel`, or by the kernel where the system's memory runs out.
            return "killed" if os.WIFSIGNALED(status) else "memory"


def _pages(column: int) -> int:
    """Pages of this process: 0, of its address space; 1, in memory."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[column])


def main() -> None:
    """Loads the vocabulary once, then serves. Arguments: its source and `max_bytes`, as JSON."""
    source, max_bytes = map(json.loads, sys.argv[1:])
    vocabulary = Vocabulary.load(VocabularySource(*source))
    CompileServer(max_bytes, vocabulary).run()


if __name__ == "__main__":
    main()
