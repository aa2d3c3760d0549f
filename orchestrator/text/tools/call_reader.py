"""Reads one tool call incrementally: a JSON object with a name and arguments.

Every decision is made at a character, never at the end of a push, so the result does not depend
on how the text was cut.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from enum import Enum, auto
from typing import Protocol

from orchestrator.text.tools.arguments import json_text, without_surrogates
from orchestrator.text.tools.tool_format import ToolFormat

NAME = "name"
ARGUMENTS = ("arguments", "parameters")
OTHERS = ("type", "id", "function")
"""Other keys that models write; their values are ignored."""

_SPACE = " \t\r\n"
_LITERAL = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+-._")
_CLOSING = {"{": "}", "[": "]"}

_MAX_HEAD = 200

_IN_STRING = re.compile(r'(?:[^"\\]++|\\.)*+', re.DOTALL)
_FIRST_BEYOND_SPACE = re.compile(rf"[{_SPACE}]*([^{_SPACE}])")
_AFTER_STRING = ",:]}"


class Verdict(Enum):
    """What the text that was read is."""

    OPEN = auto()
    CALL = auto()
    """A call of a known tool; final, also if the rest of its JSON is broken."""
    TEXT = auto()


class _State(Enum):
    BEGIN = auto()
    HEAD = auto()
    """In the name before the arguments, as Mistral and DeepSeek write it."""
    KEY = auto()
    IN_KEY = auto()
    COLON = auto()
    VALUE = auto()
    IN_VALUE = auto()
    COMMA = auto()


class CallReader(Protocol):
    """Reads one call in one notation."""

    name: str
    verdict: Verdict
    closed: bool
    """Whether a call has ended."""
    complete: bool
    """Whether it has ended as its notation says."""

    def push(self, text: str, begin: int, *, final: bool = False) -> int:
        """Takes the text from `begin` on; returns the index of the first character not taken.

        The rest belongs to what follows the call, or, unless `final`, needs more text. Every
        decision is made at a character, so the result does not depend on how the text was cut.
        """

    def take_arguments(self) -> str:
        """Returns the arguments' text since the last time; all together they are JSON."""


class ToolCallReader:
    """Takes text until the call has ended and returns its arguments incrementally.

    Missing brackets in the arguments are added and surplus ones removed, and a string that the
    format's end marker interrupts gets its quote; their other text is not changed. Keys besides the
    known ones are the arguments if the object has none.
    """

    def __init__(self, format: ToolFormat, names: Collection[str], *, marked: bool) -> None:
        """`marked`: a marker precedes, so any object with the name of a tool is a call.

        Without one it also needs arguments, or no unknown keys: it may be other JSON.
        """
        self._format = format
        self._names = names
        self._marked = marked
        self._markers = [each for each in (format.end, format.start) if each]
        self.name = ""
        self.verdict = Verdict.OPEN
        self.closed = False
        """Whether a call has ended."""
        self.complete = False
        """Whether it has ended as JSON does."""
        self._state = _State.BEGIN
        self._head = ""
        self._key = ""
        self._value = _Value()
        self._others: list[str] = []
        self._arguments: list[str] = []
        self._has_arguments = False

    def push(self, text: str, begin: int, *, final: bool = False) -> int:
        """Takes the text from `begin` on; returns the index of the first character not taken.

        The rest belongs to what follows the call, or, unless `final`, may become a marker.
        """
        for index in range(begin, len(text)):
            if self._value.in_string:
                marker = self._end_in_string(text, index, final)
            else:
                marker = self._marker_at(text, index, final)
            if marker is not None:
                if marker:
                    self._fail()
                return index
            if not self._take(text[index]):
                return index
            if self.closed or self.verdict is Verdict.TEXT:
                return index + 1
        return len(text)

    def take_arguments(self) -> str:
        """Returns the arguments' text since the last time."""
        text = "".join(self._arguments)
        self._arguments.clear()
        return text

    def _marker_at(self, text: str, index: int, final: bool) -> bool | None:
        """Whether a marker is complete there; None if there is none."""
        for marker in self._markers:
            if text[index] == marker[0]:
                if text.startswith(marker, index):
                    return True
                if not final and marker.startswith(text[index:]):
                    return False
        return None

    def _end_in_string(self, text: str, index: int, final: bool) -> bool | None:
        """As `_marker_at`, in a string: the end marker counts only if the quote is missing."""
        end = self._format.end
        if not end or text[index] != end[0] or self._value.has_quote:
            return None
        if not text.startswith(end, index):
            begun = len(text) - index < len(end) and end.startswith(text[index:])
            return False if begun and not final else None
        has_quote = self._value.find_quote(text, index, final)
        if has_quote is None:
            return False
        return None if has_quote else True

    def _take(self, character: str) -> bool:
        """Takes a character; False if it is not part of the call."""
        if self._state is _State.IN_VALUE:
            return self._take_value(character)
        if self._state is _State.IN_KEY:
            self._value.push(character)
            return not self._value.ended or self._end_key()
        if self._state is _State.HEAD:
            return self._take_head(character)
        return character in _SPACE or self._take_structure(character)

    def _take_structure(self, character: str) -> bool:
        state = self._state
        if state is _State.BEGIN and character != "{":
            return self._take_before(character)
        if state is _State.BEGIN or (state is _State.COMMA and character == ","):
            self._state = _State.KEY
        elif state is _State.KEY and character == '"':
            self._begin_value(_State.IN_KEY, character)
        elif state is _State.COLON and character == ":":
            self._state = _State.VALUE
        elif state is _State.VALUE and (character in '"{[' or character in _LITERAL):
            self._begin_value(_State.IN_VALUE, character)
        elif state in (_State.KEY, _State.COMMA) and character == "}":
            return self._end_object()
        else:
            return self._fail()
        return True

    def _take_before(self, character: str) -> bool:
        if self._format.brackets and character == "[":
            return True
        head = self._format.head
        if head is None or not head.begin.fullmatch(character):
            return self._fail()
        self._state = _State.HEAD
        self._head = character
        return True

    def _take_head(self, character: str) -> bool:
        pattern = self._format.head
        assert pattern is not None, "the format has a head"
        if character != "{":
            self._head += character
            possible = len(self._head) <= _MAX_HEAD and pattern.begin.fullmatch(self._head)
            return bool(possible) or self._fail()
        head = pattern.pattern.fullmatch(self._head)
        if head is None:
            return self._fail()
        self._key = ARGUMENTS[0]
        self._begin_value(_State.IN_VALUE, character)
        return self._set_name(head[1])

    def _begin_value(self, state: _State, character: str) -> None:
        self._state = state
        self._value = _Value()
        taken = self._value.push(character)
        if state is _State.IN_VALUE and self._streams:
            self._arguments.append(taken)

    @property
    def _streams(self) -> bool:
        """Whether the current value is the arguments and is returned as it is read."""
        first = self._value.first
        return self._key in ARGUMENTS and not self._has_arguments and first in _CLOSING

    def _take_value(self, character: str) -> bool:
        value = self._value
        if value.ends_before(character):  # a number or literal has no end marker
            self._end_value()
            return self._take(character)
        taken = value.push(character)
        if self._streams:
            self._arguments.append(taken)
        if not value.ended:
            return True
        self._end_value()
        if self._head:  # the arguments are not inside an object
            self.complete = True
            self._close()
        return self.verdict is not Verdict.TEXT

    def _end_key(self) -> bool:
        key = _parse(self._value.text)
        if not isinstance(key, str):
            return self._fail()
        self._key = key
        self._state = _State.COLON
        if key in ARGUMENTS and self.name:
            self.verdict = Verdict.CALL
        unknown = key != NAME and key not in ARGUMENTS and key not in OTHERS
        # Decided early, so that an answer which is other JSON is not held back to its end.
        return not (unknown and not self.name and not self._marked) or self._fail()

    def _end_value(self) -> None:
        self._state = _State.COMMA
        key, text = self._key, self._value.text
        if self._streams:
            self._has_arguments = True
        elif key == NAME:
            if not self.name:
                name = _parse(text)
                self._set_name(name if isinstance(name, str) else "")
        elif key in ARGUMENTS:
            value = _parse(text)
            if not self._has_arguments and value is not None:
                # Some models write the object as a string.
                self._has_arguments = True
                written = value if isinstance(value, str) else text
                self._arguments.append(without_surrogates(written))
        elif key not in OTHERS:
            self._others.append(f"{json_text(key)}: {text}")

    def _set_name(self, name: str) -> bool:
        if name not in self._names:
            return self._fail()
        self.name = name
        if self._marked or self._arguments or self._has_arguments:
            self.verdict = Verdict.CALL
        return True

    def _end_object(self) -> bool:
        self.complete = True
        if self.verdict is Verdict.OPEN and self.name and not self._others:
            self.verdict = Verdict.CALL
        if self.verdict is not Verdict.CALL:
            return self._fail()
        self._close()
        return True

    def _fail(self) -> bool:
        if self.verdict is Verdict.CALL:
            self._close()
        else:
            self.verdict = Verdict.TEXT
        return False

    def _close(self) -> None:
        self.closed = True
        if self._state is _State.IN_VALUE:
            closing = self._value.close()
            if self._streams:
                self._arguments.append(closing)
            self._end_value()
        if not self._has_arguments:
            self._arguments.append("{" + ", ".join(self._others) + "}")


class _Value:
    """Finds the end of one JSON value."""

    def __init__(self) -> None:
        self.first = ""
        self.ended = False
        self.in_string = False
        self.has_quote = False
        """Whether `find_quote` has found the end of the current string."""
        self._num_searched = 0
        """Characters that `find_quote` has searched."""
        self._characters: list[str] = []
        self._open: list[str] = []
        """The brackets that will close it, innermost last."""
        self._escaped = False

    @property
    def text(self) -> str:
        """All that was taken, with corrected brackets."""
        return "".join(self._characters)

    def ends_before(self, character: str) -> bool:
        """Whether `character` ends a value that is a number or a literal."""
        return self.first in _LITERAL and character not in _LITERAL

    def push(self, character: str) -> str:
        """Takes a character and returns it, with corrected brackets."""
        self.first = self.first or character
        if self.in_string:
            self._push_in_string(character)
        elif character == '"':
            self.in_string = True
        elif character in _CLOSING:
            self._open.append(_CLOSING[character])
        elif character in _CLOSING.values():
            character = self._close_to(character)
        self._characters.append(character)
        return character

    def find_quote(self, text: str, begin: int, final: bool) -> bool | None:
        """Whether the current string, of which the rest begins there, ends as strings do in JSON.

        That is with a quote before a comma, colon or bracket: the first quote after a string whose
        own is missing belongs to other text. None if more text decides it; `begin` must then be
        the same character in the next call, which continues the search.
        """
        found = _IN_STRING.match(text, begin + self._num_searched)
        at = found.end() if found else begin
        quoted = text.startswith('"', at)
        self._num_searched = at - begin
        following = _FIRST_BEYOND_SPACE.match(text, at + 1) if quoted else None
        if following is None and not final:
            return None
        self._num_searched = 0
        self.has_quote = quoted and (following is None or following[1] in _AFTER_STRING)
        return self.has_quote

    def close(self) -> str:
        """Ends the value; returns the missing quote and brackets."""
        closing = '\\"'[not self._escaped :] if self.in_string else ""
        self.in_string = self._escaped = False
        closing += "".join(reversed(self._open))
        self._open.clear()
        self._characters.append(closing)
        return closing

    def _push_in_string(self, character: str) -> None:
        if self._escaped:
            self._escaped = False
        elif character == "\\":
            self._escaped = True
        elif character == '"':
            self.in_string = self.has_quote = False
            self.ended = not self._open

    def _close_to(self, bracket: str) -> str:
        """The brackets that close it up to `bracket`; none if that one is surplus."""
        closing = ""
        if bracket in self._open:
            while not closing.endswith(bracket):
                closing += self._open.pop()
            self.ended = not self._open
        return closing


def _parse(text: str) -> object:
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None
