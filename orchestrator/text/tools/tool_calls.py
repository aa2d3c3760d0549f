"""Parses tool calls out of a model's text while it is generated."""

from __future__ import annotations

import secrets
import string
from collections.abc import Collection
from enum import Enum, auto
from typing import NamedTuple

from mesh.protocol.deltas import ToolCallDelta
from mesh.text.held_text import overlap
from orchestrator.text.tools.call_reader import ToolCallReader, Verdict
from orchestrator.text.tools.tool_format import ToolFormat

_ALPHABET = string.ascii_letters + string.digits
_SPACE = " \t\r\n"


class ParsedText(NamedTuple):
    """New text, separated into text and tool calls."""

    text: str
    calls: tuple[ToolCallDelta, ...]


class _State(Enum):
    BEGIN = auto()
    """Only white space so far."""
    TEXT = auto()
    CALL = auto()
    """After the start marker, or at what may be a call without one."""
    AFTER_CALL = auto()
    """A call has ended."""
    BEFORE_END = auto()
    """Something else than the end marker follows a call: it is dropped if the marker comes."""


class ToolCallParser:
    """Splits one answer into its text and its calls.

    The concatenated texts are the answer without its calls and without the white space around
    them. Text that is not a call of a tool in `names` stays text; a call whose JSON breaks after
    the name stays a call. The result does not depend on how the answer was cut into pushes.
    """

    def __init__(self, format: ToolFormat, names: Collection[str], *, single: bool = False) -> None:
        """`single`: only the first call is returned."""
        self._format = format
        self._names = names
        self._single = single
        self._between = _SPACE + ",;" * (format.brackets or format.bare)
        self._state = _State.BEGIN
        self._pending = ""
        """Text that is neither returned nor dropped yet."""
        self._introduction = 0
        """Length of white space and markers in `_pending` before the call."""
        self._num_read = 0
        """Characters of `_pending` that the reader has taken, or that are before the call."""
        self._reader = ToolCallReader(format, names, marked=False)
        self._named = False
        self._num_calls = 0
        self._text: list[str] = []
        self._calls: list[ToolCallDelta] = []
        self.position = 0
        """Number of characters that were returned or dropped."""
        self.spans: list[tuple[int, int]] = []
        """Half-open ranges of the answer that were returned as text; adjacent ones are joined."""

    def push(self, text: str) -> ParsedText:
        """Takes more of the answer and returns what is certain now."""
        self._pending += text
        self._advance()
        return self._take()

    def flush(self) -> ParsedText:
        """Returns what was held back. Called once, at the end of the answer."""
        if self._state is _State.CALL:
            self._step_call(final=True)
            if self._reader.closed:  # at an end marker that was held back
                self._advance()
        rest = self._pending.lstrip(self._between)
        match self._state:
            case _State.CALL:
                dropped = self._reader.verdict is Verdict.CALL
            case _State.AFTER_CALL | _State.BEFORE_END:
                dropped = self._format.end.startswith(rest) or self._format.start.startswith(rest)
            case _:
                dropped = self._num_calls > 0 and not self._pending.strip()
        (self._drop if dropped else self._release)(len(self._pending))
        return self._take()

    def _advance(self) -> None:
        while self._pending and self._step():
            pass

    def _take(self) -> ParsedText:
        parsed = ParsedText("".join(self._text), tuple(self._calls))
        self._text.clear()
        self._calls.clear()
        return parsed

    def _release(self, length: int) -> None:
        """Returns the first characters of `_pending` as text."""
        if not length:
            return
        self._text.append(self._pending[:length])
        begin = self.position
        if self.spans and self.spans[-1][1] == begin:
            begin = self.spans.pop()[0]
        self._drop(length)
        self.spans.append((begin, self.position))

    def _drop(self, length: int) -> None:
        self._pending = self._pending[length:]
        self.position += length

    def _step(self) -> bool:
        """Consumes part of `_pending`; returns False if more text is needed first."""
        match self._state:
            case _State.BEGIN | _State.TEXT:
                return self._step_text()
            case _State.CALL:
                return self._step_call()
            case _State.AFTER_CALL:
                return self._step_after_call()
            case _:
                return self._step_before_end()

    def _step_text(self) -> bool:
        start = self._format.start
        begun = self._pending.lstrip()
        if self._state is _State.BEGIN and self._format.bare and begun.startswith("{"):
            self._begin_call(len(self._pending) - len(begun), marked=False)
            return True
        found = self._pending.find(start)
        if found >= 0:
            shown = len(self._pending[:found].rstrip())
            self._release(shown)
            self._begin_call(found - shown + len(start), marked=True)
            return True
        shown = len(self._pending) - overlap(self._pending, start)
        # Trailing white space is held back too: before a call it is dropped.
        shown = len(self._pending[:shown].rstrip())
        if shown:
            self._state = _State.TEXT
            self._release(shown)
        return False

    def _begin_call(self, introduction: int, *, marked: bool) -> None:
        self._introduction = self._num_read = introduction
        self._reader = ToolCallReader(self._format, self._names, marked=marked)
        self._named = False
        self._state = _State.CALL

    def _step_call(self, *, final: bool = False) -> bool:
        reader = self._reader
        self._num_read = reader.push(self._pending, self._num_read, final=final)
        if reader.verdict is Verdict.TEXT:
            self._state = _State.TEXT
            if self._format.start in self._pending[: self._introduction]:
                self._release(self._introduction)  # so that the marker is not found again
            return True
        if reader.verdict is Verdict.CALL:
            self._drop(self._num_read)
            self._num_read = 0
            if not self._named:
                self._named = True
                self._add_delta(id=self._make_id(), name=reader.name)
            self._add_delta(arguments=reader.take_arguments())
        if reader.closed:
            self._num_calls += 1
            broken = not reader.complete and self._format.end
            self._state = _State.BEFORE_END if broken else _State.AFTER_CALL
        return reader.closed

    def _step_after_call(self) -> bool:
        start, end = self._format.start, self._format.end
        # Surplus brackets are dropped.
        self._drop(len(self._pending) - len(self._pending.lstrip(_SPACE + "}]")))
        rest = self._pending.lstrip(self._between)
        between = len(self._pending) - len(rest)
        if not rest:
            return False
        if rest.startswith("{") and (self._format.brackets or self._format.bare):
            self._begin_call(between, marked=True)
        elif rest.startswith(start):
            self._drop(between)
            self._state = _State.TEXT
        elif end and rest.startswith(end):
            self._drop(between + len(end))
            self._state = _State.TEXT
        elif start.startswith(rest) or end.startswith(rest):
            return False
        else:
            self._state = _State.BEFORE_END if end else _State.TEXT
        return True

    def _step_before_end(self) -> bool:
        start, end = self._format.start, self._format.end
        found = [(at, marker) for marker in (start, end) if (at := self._pending.find(marker)) >= 0]
        if not found:
            return False
        at, marker = min(found)
        if marker == end:
            self._drop(at + len(end))
        self._state = _State.TEXT
        return True

    def _add_delta(self, *, id: str = "", name: str = "", arguments: str = "") -> None:
        if self._single and self._num_calls:
            return
        if id or arguments:
            self._calls.append(ToolCallDelta(self._num_calls, id, name, arguments))

    def _make_id(self) -> str:
        letters = (secrets.choice(_ALPHABET) for _ in range(self._format.id_length))
        return self._format.id_prefix + "".join(letters)
