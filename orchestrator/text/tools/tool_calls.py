"""Parses tool calls out of a model's text while it is generated."""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable, Collection, Mapping
from enum import Enum, auto
from typing import NamedTuple

from mesh.protocol.deltas import ToolCallDelta
from mesh.text.held_text import overlap
from orchestrator.text.tools.call_reader import CallReader, ToolCallReader, Verdict
from orchestrator.text.tools.pythonic_reader import PythonicCallReader
from orchestrator.text.tools.tagged_reader import TaggedCallReader
from orchestrator.text.tools.tool_format import CallStyle, ToolFormat

_ALPHABET = string.ascii_letters + string.digits
_SPACE = " \t\r\n"
_MAX_BETWEEN = 200
"""Characters that may stand between two calls; more of them are text."""


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
    AFTER_END = auto()
    """After the end marker of a call, where markers of further calls may follow."""
    BEFORE_END = auto()
    """Something else than the end marker follows a call: it is dropped if the marker comes."""


_READERS: Mapping[CallStyle, Callable[..., CallReader]] = {
    CallStyle.JSON: ToolCallReader,
    CallStyle.TAGS: TaggedCallReader,
    CallStyle.PYTHON: PythonicCallReader,
}


def make_id(format: ToolFormat) -> str:
    """A new id of a call."""
    letters = (secrets.choice(_ALPHABET) for _ in range(format.id_length))
    return format.id_prefix + "".join(letters)


class ToolCallParser:
    """Splits one answer into its text and its calls.

    The concatenated texts are the answer without its calls and without the white space around
    them. Text that is not a call of a tool in `names` stays text; a call whose JSON breaks after
    the name stays a call. The result does not depend on how the answer was cut into pushes.
    """

    def __init__(
        self,
        format: ToolFormat,
        names: Collection[str],
        *,
        single: bool = False,
        forced: bool = False,
    ) -> None:
        """`names` may be a mapping of names to the schemas of their parameters. `single`: only the
        first call is returned. `forced`: the answer has nothing but calls."""
        self._format = format
        self._names = names
        self._single = single
        self._forced = forced
        self._between = _SPACE + format.between
        markers = (format.start, format.end, format.again, format.close)
        self._markers = tuple(marker for marker in markers if marker)
        self._state = _State.BEGIN
        self._pending = ""
        """Text that is neither returned nor dropped yet."""
        self._introduction = 0
        """Length of white space and markers in `_pending` before the call."""
        self._num_read = 0
        """Characters of `_pending` that the reader has taken, or that are before the call."""
        self._num_searched = 0
        """Characters of `_pending` in which no marker begins, after a broken call."""
        self._reader = self._new_reader(marked=True)
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
            case _State.AFTER_CALL | _State.BEFORE_END | _State.AFTER_END:
                dropped = any(marker.startswith(rest) for marker in self._markers)
            case _:
                dropped = self._num_calls > 0 and not self._pending.strip()
        # Of a forced call only its beginning may be left, such as `<tool_`: it is no text.
        (self._drop if dropped or self._forced else self._release)(len(self._pending))
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
            case _State.AFTER_END:
                return self._step_after_end()
            case _:
                return self._step_before_end()

    def _step_text(self) -> bool:
        start = self._format.start
        begun = self._pending.lstrip()
        bare = self._format.bare
        if self._state is _State.BEGIN and bare and begun.startswith(bare):
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
        self._reader = self._new_reader(marked=marked)
        self._named = False
        self._state = _State.CALL

    def _new_reader(self, *, marked: bool) -> CallReader:
        return _READERS[self._format.style](self._format, self._names, marked=marked)

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
                self._add_delta(id=make_id(self._format), name=reader.name)
            self._add_delta(arguments=reader.take_arguments())
        if reader.closed:
            self._num_calls += 1
            broken = not reader.complete and self._format.end
            if broken:
                self._search_end()
            else:
                self._state = _State.AFTER_CALL
        return reader.closed

    def _step_after_call(self) -> bool:
        # Surplus brackets are dropped.
        self._drop(len(self._pending) - len(self._pending.lstrip(_SPACE + "}]")))
        rest = self._pending.lstrip(self._between)
        between = len(self._pending) - len(rest)
        if between > _MAX_BETWEEN:
            self._search_end()
        elif not rest:
            return False
        elif self._is_next_call(rest, self._pending[:between]):
            self._begin_call(between, marked=True)
        elif (marker := self._marker_of(rest)) is not None:
            self._pass_marker(between, marker)
        elif self._may_become_marker(rest):
            return False
        else:
            self._search_end()
        return True

    def _search_end(self) -> None:
        self._state = _State.BEFORE_END if self._format.end else _State.TEXT
        self._num_searched = 0

    def _is_next_call(self, rest: str, between: str) -> bool:
        format = self._format
        if format.style is CallStyle.PYTHON:
            return "," in between and rest[0].isidentifier()
        return rest[0] == "{" and bool(format.brackets or format.bare)

    def _marker_of(self, rest: str) -> str | None:
        return next((marker for marker in self._markers if rest.startswith(marker)), None)

    def _may_become_marker(self, rest: str) -> bool:
        return any(marker.startswith(rest) for marker in self._markers)

    def _pass_marker(self, before: int, marker: str) -> None:
        """Goes on at a marker after a call, with `before` characters between them."""
        format = self._format
        if marker == format.again:
            self._begin_call(before, marked=True)
            return
        if marker == format.start:
            self._drop(before)  # `_step_text` finds it again
            self._state = _State.TEXT
            return
        self._drop(before + len(marker))
        more = marker == format.end and (format.again or format.close)
        self._state = _State.AFTER_END if more else _State.TEXT

    def _step_after_end(self) -> bool:
        rest = self._pending.lstrip(_SPACE)
        if not rest:
            return False
        marker = self._marker_of(rest)
        if marker is not None:
            self._pass_marker(len(self._pending) - len(rest), marker)
        elif self._may_become_marker(rest):
            return False
        else:
            self._state = _State.TEXT
        return True

    def _step_before_end(self) -> bool:
        # Searched once, as much text may follow a broken call.
        begin = self._num_searched
        found = [
            (at, each) for each in self._markers if (at := self._pending.find(each, begin)) >= 0
        ]
        if not found:
            longest = max(map(len, self._markers))
            self._num_searched = max(begin, len(self._pending) - longest + 1)
            return False
        at, marker = min(found)
        if marker == self._format.start:
            self._state = _State.TEXT
        else:
            self._pass_marker(at, marker)
        return True

    def _add_delta(self, *, id: str = "", name: str = "", arguments: str = "") -> None:
        if self._single and self._num_calls:
            return
        if id or arguments:
            self._calls.append(ToolCallDelta(self._num_calls, id, name, arguments))
