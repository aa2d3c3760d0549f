"""Reads one call, a JSON object with a name and arguments, as its text comes."""

from __future__ import annotations

import json
from enum import Enum, auto

NAME = "name"
ARGUMENTS = ("arguments", "parameters")
OTHERS = ("type", "id", "function")
"""Further keys that models write; their values are passed over."""

_SPACE = " \t\r\n"


class _At(Enum):
    OPEN = auto()
    KEY = auto()
    IN_KEY = auto()
    COLON = auto()
    VALUE = auto()
    IN_VALUE = auto()
    COMMA = auto()
    END = auto()
    BROKEN = auto()


class CallReader:
    """Takes text until the object is complete; arguments come out while they are written."""

    def __init__(self) -> None:
        self.raw = ""
        """All that was taken, for whoever finds that it is no call."""
        self.name: str | None = None
        """The tool, once its name is complete."""
        self._at = _At.OPEN
        self._key = ""
        self._value = _Value()
        self._arguments: list[str] = []
        self._has_arguments = False

    @property
    def complete(self) -> bool:
        """Whether the object has ended."""
        return self._at is _At.END

    @property
    def broken(self) -> bool:
        """Whether this is no call's JSON."""
        return self._at is _At.BROKEN or (self.complete and self.name is None)

    def push(self, text: str) -> str:
        """Takes what belongs to the object; gives the rest, empty until it has ended."""
        for number, character in enumerate(text):
            if self._at in (_At.END, _At.BROKEN):
                self.raw += text[:number]
                return text[number:]
            self._take(character)
        self.raw += text
        return ""

    def take_arguments(self) -> str:
        """The arguments' text since the last call; an object without any has `{}`."""
        if self.complete and not self._has_arguments:
            self._has_arguments = True
            return "{}"
        text = "".join(self._arguments)
        self._arguments.clear()
        return text

    def _take(self, character: str) -> None:
        if self._at is _At.IN_VALUE:
            self._take_value(character)
        elif self._at is _At.IN_KEY:
            if self._value.push(character):
                self._end_key()
        elif character not in _SPACE:
            self._take_structure(character)

    def _take_structure(self, character: str) -> None:
        at = self._at
        if at is _At.OPEN and character == "{":
            self._at = _At.KEY
        elif at is _At.KEY and character == '"':
            self._at = _At.IN_KEY
            self._value = _Value()
            self._value.push(character)
        elif at is _At.COLON and character == ":":
            self._at = _At.VALUE
        elif at is _At.VALUE and character not in ",:}]":
            self._at = _At.IN_VALUE
            self._value = _Value()
            self._take_value(character)
        elif at is _At.COMMA and character == ",":
            self._at = _At.KEY
        elif at is _At.COMMA and character == "}":
            self._at = _At.END
        else:
            self._at = _At.BROKEN

    def _end_key(self) -> None:
        self._key = str(_parse(self._value.text))
        known = self._key == NAME or self._key in ARGUMENTS or self._key in OTHERS
        # Told early: an answer that is just JSON need not wait for its end.
        self._at = _At.COLON if known else _At.BROKEN

    def _take_value(self, character: str) -> None:
        value = self._value
        if value.ends_before(character):  # a number or a word has no end of its own
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
        self._at = _At.COMMA
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
    """One JSON value, told where it ends."""

    def __init__(self) -> None:
        self.first = ""
        self._pieces: list[str] = []
        self._depth = 0
        self._in_string = False
        self._escaped = False

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def ends_before(self, character: str) -> bool:
        """Whether a value that has begun as a number or a word is over."""
        bare = self._pieces and self._depth == 0 and not self._in_string
        return bool(bare) and (character in ",}]" or character in _SPACE)

    def push(self, character: str) -> bool:
        """Takes a character; True if it is the value's last."""
        self.first = self.first or character
        self._pieces.append(character)
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
