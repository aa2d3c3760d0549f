"""Parses tool calls out of a model's text while it is generated."""

from __future__ import annotations

import secrets
import string
from collections.abc import Collection
from enum import Enum, auto
from typing import NamedTuple

from mesh.protocol.deltas import ToolCallDelta
from orchestrator.text.held_text import overlap
from orchestrator.text.tools.call_reader import ToolCallReader
from orchestrator.text.tools.tool_format import ToolFormat

_ALPHABET = string.ascii_letters + string.digits


class ParsedText(NamedTuple):
    """New text, separated into text and tool calls."""

    text: str
    calls: tuple[ToolCallDelta, ...]


class _State(Enum):
    BEGIN = auto()
    """Only white space so far."""
    TEXT = auto()
    BEFORE_CALL = auto()
    """After the start marker: a call must follow."""
    CALL = auto()
    AFTER_CALL = auto()
    """A call has ended."""


class ToolCallParser:
    """Splits one answer into its text and its calls.

    The concatenated texts are the answer without its calls and without the white space around
    them. Text that is not a valid call, or that calls no tool in `names`, stays text.
    """

    def __init__(self, format: ToolFormat, names: Collection[str], *, single: bool = False) -> None:
        """`single`: only the first call is returned."""
        self._format = format
        self._names = names
        self._single = single
        self._state = _State.BEGIN
        self._pending = ""
        self._introduction = ""
        """Marker and white space before the current call; becomes text if the call is invalid."""
        self._reader = ToolCallReader()
        self._num_calls = 0
        self._named = False
        self._text: list[str] = []
        self._calls: list[ToolCallDelta] = []

    def push(self, text: str) -> ParsedText:
        """Takes more of the answer and returns what is certain now."""
        self._pending += text
        while self._pending and self._step():
            pass
        return self._take()

    def flush(self) -> ParsedText:
        """Returns what was held back. Called once, at the end of the answer."""
        pending, self._pending = self._pending, ""
        if self._state is _State.CALL and not self._named:
            pending = self._introduction + self._reader.raw + pending
        elif self._state is _State.BEFORE_CALL:
            pending = self._introduction + pending
        elif self._state in (_State.CALL, _State.AFTER_CALL) or (
            self._num_calls and not pending.strip()
        ):
            pending = ""
        self._text.append(pending)
        return self._take()

    def _take(self) -> ParsedText:
        parsed = ParsedText("".join(self._text), tuple(self._calls))
        self._text.clear()
        self._calls.clear()
        return parsed

    def _step(self) -> bool:
        """Consumes part of `_pending`; returns False if more text is needed first."""
        match self._state:
            case _State.BEGIN | _State.TEXT:
                return self._step_text()
            case _State.CALL:
                return self._step_call()
            case _:
                return self._step_between()

    def _step_text(self) -> bool:
        begun = self._pending.lstrip()
        if self._state is _State.BEGIN and self._format.bare and begun.startswith("{"):
            self._begin_call(self._pending[: len(self._pending) - len(begun)])
            self._pending = begun
            return True
        found = self._pending.find(self._format.start)
        if found >= 0:
            before = self._pending[:found]
            kept = before.rstrip()
            self._text.append(kept)
            self._introduction = before[len(kept) :] + self._format.start
            self._pending = self._pending[found + len(self._format.start) :]
            self._state = _State.BEFORE_CALL
            return True
        shown = len(self._pending) - overlap(self._pending, self._format.start)
        # Trailing white space is held back too: before a call it is dropped.
        shown = len(self._pending[:shown].rstrip())
        if shown:
            self._state = _State.TEXT
            self._text.append(self._pending[:shown])
            self._pending = self._pending[shown:]
        return False

    def _step_between(self) -> bool:
        before = self._state is _State.BEFORE_CALL
        skipped = " \t\r\n" + ("[" if before else ",") * self._format.brackets
        if not before and self._format.bare:
            skipped += ";,"
        rest = self._pending.lstrip(skipped)
        introduction = self._pending[: len(self._pending) - len(rest)]
        end = "]" if self._format.brackets else self._format.end
        if not rest or (end and rest != end and end.startswith(rest) and not before):
            if before:
                self._introduction += introduction
                self._pending = rest
            return False
        again = before or self._format.brackets or self._format.bare
        if rest.startswith("{") and again:
            self._begin_call((self._introduction if before else "") + introduction)
        elif not before and end and rest.startswith(end):
            rest = rest[len(end) :]
            self._state = _State.TEXT
        else:
            if before:
                self._text.append(self._introduction + introduction)
            self._state = _State.TEXT
        self._pending = rest
        return True

    def _begin_call(self, introduction: str) -> None:
        self._introduction = introduction
        self._reader = ToolCallReader()
        self._named = False
        self._state = _State.CALL

    def _step_call(self) -> bool:
        reader = self._reader
        self._pending = reader.push(self._pending)
        if not self._named and (reader.broken or reader.name is not None):
            if reader.broken or reader.name not in self._names:
                self._release()
                return True
            self._name_call(str(reader.name))
        if self._named:
            self._add_delta(arguments=reader.take_arguments())
        if reader.complete or reader.broken:
            if self._named:
                self._num_calls += 1
            self._state = _State.AFTER_CALL
            return True
        return False

    def _release(self) -> None:
        """Returns an invalid call as text."""
        self._text.append(self._introduction)
        self._pending = self._reader.raw + self._pending
        # Release its first character, so that it is not parsed as a call again.
        self._text.append(self._pending[:1])
        self._pending = self._pending[1:]
        self._state = _State.TEXT

    def _name_call(self, name: str) -> None:
        self._named = True
        self._add_delta(id=self._make_id(), name=name)

    def _add_delta(self, *, id: str = "", name: str = "", arguments: str = "") -> None:
        if self._single and self._num_calls:
            return
        if id or arguments:
            self._calls.append(ToolCallDelta(self._num_calls, id, name, arguments))

    def _make_id(self) -> str:
        letters = (secrets.choice(_ALPHABET) for _ in range(self._format.id_length))
        return self._format.id_prefix + "".join(letters)
