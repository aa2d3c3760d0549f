"""Reads one tool call that is written as a call in Python: `name(key=value, …)`, incrementally.

The arguments become a JSON object, of which each member is returned when its value is complete.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from enum import Enum, auto

from orchestrator.text.tools.arguments import json_of
from orchestrator.text.tools.call_reader import Verdict
from orchestrator.text.tools.tool_format import ToolFormat

_SPACE = " \t\r\n"
_NAME = re.compile(r"[A-Za-z_][\w.-]*")
_MAX_NAME = 200
_OPENING = "([{"
_CLOSING = ")]}"


class _State(Enum):
    BEGIN = auto()
    """Before the list, or before a name in it."""
    NAME = auto()
    KEY = auto()
    VALUE = auto()


class PythonicCallReader:
    """Takes text until the call has ended and returns its arguments incrementally."""

    def __init__(self, format: ToolFormat, tools: Collection[str], *, marked: bool) -> None:
        """A call is known by the name of a tool and the bracket, with or without a marker."""
        self._tools = tools
        self.name = ""
        self.verdict = Verdict.OPEN
        self.closed = False
        self.complete = False
        self._state = _State.BEGIN
        self._in_list = False
        self._word = ""
        self._key = ""
        self._value: list[str] = []
        self._num_open = 0
        """Brackets that are open inside the current value."""
        self._quote = ""
        """The quote that ends the current string; empty outside of strings."""
        self._is_escaped = False
        self._num_arguments = 0
        self._arguments: list[str] = []

    def push(self, text: str, begin: int, *, final: bool = False) -> int:
        """As `ToolCallReader.push`."""
        for index in range(begin, len(text)):
            if not self._take(text[index]):
                self._fail()
            if self.verdict is Verdict.TEXT:
                return index
            if self.closed:
                return index + 1 if self.complete else index
        return len(text)

    def take_arguments(self) -> str:
        """Returns the arguments' text since the last time."""
        text = "".join(self._arguments)
        self._arguments.clear()
        return text

    def _take(self, character: str) -> bool:
        """Takes a character; False if it cannot be part of a call."""
        match self._state:
            case _State.VALUE:
                self._take_in_value(character)
                return True
            case _State.BEGIN:
                return self._take_before(character)
            case _State.NAME:
                return self._take_in_name(character)
            case _:
                return self._take_in_key(character)

    def _take_before(self, character: str) -> bool:
        if character in _SPACE:
            return True
        if character == "[" and not self._in_list:
            self._in_list = True
            return True
        self._state = _State.NAME
        return self._take_in_name(character)

    def _take_in_name(self, character: str) -> bool:
        if character == "(":
            self.name = self._word
            self._word = ""
            self._state = _State.KEY
            return self.name in self._tools
        return self._add_to_word(character)

    def _take_in_key(self, character: str) -> bool:
        if character == "=" and self._word:
            self.verdict = Verdict.CALL
            self._key, self._word = self._word.strip(), ""
            self._state = _State.VALUE
            return True
        if character == ")" and not self._word:
            self._end(complete=True)
            return True
        if character in _SPACE:
            return True
        return self._add_to_word(character)

    def _add_to_word(self, character: str) -> bool:
        self._word += character
        return len(self._word) <= _MAX_NAME and _NAME.fullmatch(self._word) is not None

    def _take_in_value(self, character: str) -> None:
        if self._quote:
            if self._is_escaped:
                self._is_escaped = False
            elif character == "\\":
                self._is_escaped = True
            elif character == self._quote:
                self._quote = ""
        elif character in "\"'":
            self._quote = character
        elif character in _OPENING:
            self._num_open += 1
        elif not self._num_open and character in ",)":
            self._end_value()
            self._state = _State.KEY
            if character == ")":
                self._end(complete=True)
            return
        elif character in _CLOSING:
            self._num_open = max(0, self._num_open - 1)
        self._value.append(character)

    def _end_value(self) -> None:
        before = ", " if self._num_arguments else "{"
        self._num_arguments += 1
        key = json.dumps(self._key, ensure_ascii=False)
        self._arguments.append(f"{before}{key}: {json_of(''.join(self._value))}")
        self._value.clear()

    def _fail(self) -> None:
        if self.verdict is Verdict.CALL:
            self._end(complete=False)
        else:
            self.verdict = Verdict.TEXT

    def _end(self, *, complete: bool) -> None:
        self.verdict = Verdict.CALL
        self.closed = True
        self.complete = complete
        self._arguments.append("}" if self._num_arguments else "{}")
