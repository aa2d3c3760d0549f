"""Calls of tools, read out of a model's text while it is written."""

from __future__ import annotations

import secrets
import string
from collections.abc import Collection
from enum import Enum, auto
from typing import NamedTuple

from mesh.protocol.deltas import ToolCallDelta
from orchestrator.text.held_text import overlap
from orchestrator.text.tools.call_reader import CallReader
from orchestrator.text.tools.tool_format import ToolFormat

_ALPHABET = string.ascii_letters + string.digits


class Told(NamedTuple):
    """What a piece of text comes to."""

    text: str
    calls: tuple[ToolCallDelta, ...]


class _At(Enum):
    BEGIN = auto()
    """Nothing but white space so far."""
    TEXT = auto()
    BEFORE = auto()
    """Behind `start`: a call must come."""
    CALL = auto()
    AFTER = auto()
    """Behind a call."""


class ToolCalls:
    """Splits one answer into its text and its calls.

    The concatenated texts are the answer without its calls, and without white space around
    those. What looks like a call and is none, or calls no tool of `names`, stays text.
    """

    def __init__(self, format: ToolFormat, names: Collection[str], *, single: bool = False) -> None:
        """`single`: only the first call is told."""
        self._format = format
        self._names = names
        self._single = single
        self._at = _At.BEGIN
        self._pending = ""
        self._introduction = ""
        """What stood between the text and the call that is read: text again, if it is none."""
        self._reader = CallReader()
        self._num_calls = 0
        self._named = False
        self._text: list[str] = []
        self._calls: list[ToolCallDelta] = []

    def push(self, text: str) -> Told:
        """Takes more of the answer, gives what is certain now."""
        self._pending += text
        while self._pending and self._step():
            pass
        return self._told()

    def flush(self) -> Told:
        """What was held back; at the end of the answer."""
        pending, self._pending = self._pending, ""
        if self._at is _At.CALL and not self._named:
            pending = self._introduction + self._reader.raw + pending
        elif self._at is _At.BEFORE:
            pending = self._introduction + pending
        elif self._at in (_At.CALL, _At.AFTER) or (self._num_calls and not pending.strip()):
            pending = ""
        self._text.append(pending)
        return self._told()

    def _told(self) -> Told:
        told = Told("".join(self._text), tuple(self._calls))
        self._text.clear()
        self._calls.clear()
        return told

    def _step(self) -> bool:
        """Takes something off `_pending`; False if more is needed first."""
        match self._at:
            case _At.BEGIN | _At.TEXT:
                return self._step_text()
            case _At.CALL:
                return self._step_call()
            case _:
                return self._step_between()

    def _step_text(self) -> bool:
        begun = self._pending.lstrip()
        if self._at is _At.BEGIN and self._format.bare and begun.startswith("{"):
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
            self._at = _At.BEFORE
            return True
        shown = len(self._pending) - overlap(self._pending, self._format.start)
        # White space waits as well: before a call it is none of the answer's.
        shown = len(self._pending[:shown].rstrip())
        if shown:
            self._at = _At.TEXT
            self._text.append(self._pending[:shown])
            self._pending = self._pending[shown:]
        return False

    def _step_between(self) -> bool:
        before = self._at is _At.BEFORE
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
            self._at = _At.TEXT
        else:
            if before:
                self._text.append(self._introduction + introduction)
            self._at = _At.TEXT
        self._pending = rest
        return True

    def _begin_call(self, introduction: str) -> None:
        self._introduction = introduction
        self._reader = CallReader()
        self._named = False
        self._at = _At.CALL

    def _step_call(self) -> bool:
        reader = self._reader
        self._pending = reader.push(self._pending)
        if not self._named and (reader.broken or reader.name is not None):
            if reader.broken or reader.name not in self._names:
                self._release()
                return True
            self._name_call(str(reader.name))
        if self._named:
            self._tell(arguments=reader.take_arguments())
        if reader.complete or reader.broken:
            if self._named:
                self._num_calls += 1
            self._at = _At.AFTER
            return True
        return False

    def _release(self) -> None:
        """It was no call: all that was read is text."""
        self._text.append(self._introduction)
        self._pending = self._reader.raw + self._pending
        # Its first character is shown, so that it is not taken for a call again.
        self._text.append(self._pending[:1])
        self._pending = self._pending[1:]
        self._at = _At.TEXT

    def _name_call(self, name: str) -> None:
        self._named = True
        self._tell(id=self._make_id(), name=name)

    def _tell(self, *, id: str = "", name: str = "", arguments: str = "") -> None:
        if self._single and self._num_calls:
            return
        if id or arguments:
            self._calls.append(ToolCallDelta(self._num_calls, id, name, arguments))

    def _make_id(self) -> str:
        letters = (secrets.choice(_ALPHABET) for _ in range(self._format.id_length))
        return self._format.id_prefix + "".join(letters)
