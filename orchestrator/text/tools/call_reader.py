"""Parses one tool call, a JSON object with a name and arguments, incrementally."""

from __future__ import annotations

import json
from enum import Enum, auto

NAME = "name"
ARGUMENTS = ("arguments", "parameters")
OTHERS = ("type", "id", "function")
"""Other keys that models write; their values are ignored."""

_SPACE = " \t\r\n"


class _State(Enum):
    OPEN = auto()
    KEY = auto()
    IN_KEY = auto()
    COLON = auto()
    VALUE = auto()
    IN_VALUE = auto()
    COMMA = auto()
    END = auto()
    BROKEN = auto()


class ToolCallReader:
    """Takes text until the object is complete and returns its arguments incrementally."""

    def __init__(self) -> None:
        self.raw = ""
        """All text taken so far, for the caller to restore if this is not a call."""
        self.name: str | None = None
        """Name of the tool; None until it is complete."""
        self._state = _State.OPEN
        self._key = ""
        self._value = _Value()
        self._arguments: list[str] = []
        self._has_arguments = False

    @property
    def complete(self) -> bool:
        """Whether the object has ended."""
        return self._state is _State.END

    @property
    def broken(self) -> bool:
        """Whether this is not the JSON of a call."""
        return self._state is _State.BROKEN or (self.complete and self.name is None)

    def push(self, text: str) -> str:
        """Takes the object's text; returns the text after it, empty until the object has ended."""
        for number, character in enumerate(text):
            if self._state in (_State.END, _State.BROKEN):
                self.raw += text[:number]
                return text[number:]
            self._take(character)
        self.raw += text
        return ""

    def take_arguments(self) -> str:
        """Returns the arguments' text since the last time; `{}` for an object without any."""
        if self.complete and not self._has_arguments:
            self._has_arguments = True
            return "{}"
        text = "".join(self._arguments)
        self._arguments.clear()
        return text

    def _take(self, character: str) -> None:
        if self._state is _State.IN_VALUE:
            self._take_value(character)
        elif self._state is _State.IN_KEY:
            if self._value.push(character):
                self._end_key()
        elif character not in _SPACE:
            self._take_structure(character)

    def _take_structure(self, character: str) -> None:
        state = self._state
        if state is _State.OPEN and character == "{":
            self._state = _State.KEY
        elif state is _State.KEY and character == '"':
            self._state = _State.IN_KEY
            self._value = _Value()
            self._value.push(character)
        elif state is _State.COLON and character == ":":
            self._state = _State.VALUE
        elif state is _State.VALUE and character not in ",:}]":
            self._state = _State.IN_VALUE
            self._value = _Value()
            self._take_value(character)
        elif state is _State.COMMA and character == ",":
            self._state = _State.KEY
        elif state is _State.COMMA and character == "}":
            self._state = _State.END
        else:
            self._state = _State.BROKEN

    def _end_key(self) -> None:
        self._key = str(_parse(self._value.text))
        known = self._key == NAME or self._key in ARGUMENTS or self._key in OTHERS
        # Decided early, so that an answer which is other JSON is not held back to its end.
        self._state = _State.COLON if known else _State.BROKEN

    def _take_value(self, character: str) -> None:
        value = self._value
        if value.ends_before(character):  # a number or literal has no end marker
            self._end_value()
            self._take(character)
            return
        ended = value.push(character)
        if self._key in ARGUMENTS and value.first == "{":
            self._has_arguments = True
            self._arguments.append(character)
        if ended:
            self._end_value()

    def _end_value(self) -> None:
        self._state = _State.COMMA
        if self._value.first == "{":
            return
        text = self._value.text
        value = _parse(text)
        if self._key == NAME:
            self.name = value if isinstance(value, str) else None
        elif self._key in ARGUMENTS and text != "null":
            # Some models write the object as a string.
            self._has_arguments = True
            self._arguments.append(value if isinstance(value, str) else text)


class _Value:
    """Finds the end of one JSON value."""

    def __init__(self) -> None:
        self.first = ""
        self._characters: list[str] = []
        self._depth = 0
        self._in_string = False
        self._escaped = False

    @property
    def text(self) -> str:
        return "".join(self._characters)

    def ends_before(self, character: str) -> bool:
        """Whether `character` ends a value that is a number or a literal."""
        bare = self._characters and self._depth == 0 and not self._in_string
        return bool(bare) and (character in ",}]" or character in _SPACE)

    def push(self, character: str) -> bool:
        """Takes a character; returns whether it is the last of the value."""
        self.first = self.first or character
        self._characters.append(character)
        if self._in_string:
            if self._escaped:
                self._escaped = False
            elif character == "\\":
                self._escaped = True
            elif character == '"':
                self._in_string = False
                return self._depth == 0
            return False
        if character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            return self._depth == 0
        return False


def _parse(text: str) -> object:
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None
