"""Reads one tool call whose arguments are tagged one by one, incrementally.

    <function=NAME><parameter=KEY>VALUE</parameter></function>            Qwen3-Coder
    NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value>                GLM-4.5

The arguments become a JSON object: a parameter that the tool's schema declares as a string is
passed on as it is written, any other once its value is complete.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from enum import Enum, auto

from mesh.text.held_text import overlap
from orchestrator.text.tools.arguments import json_of, schema_of, types_of
from orchestrator.text.tools.call_reader import Verdict
from orchestrator.text.tools.tool_format import Tags, ToolFormat

_SPACE = re.compile(r"\s*")
_NAME = re.compile(r"[\w.-]*")
_MAX_NAME = 200


class _State(Enum):
    NAME = auto()
    KEY = auto()
    """Before a parameter, or the end of the call."""
    VALUE = auto()


class TaggedCallReader:
    """Takes text until the call has ended and returns its arguments incrementally.

    A value ends at its closing tag, or at the call's end marker if that tag is missing.
    """

    def __init__(self, format: ToolFormat, tools: Collection[str], *, marked: bool) -> None:
        """`tools`: names, or a mapping of names to the schemas of their parameters."""
        assert marked, "a tagged call follows a marker"
        assert format.tags is not None, "the format has tags"
        self._tags: Tags = format.tags
        self._end = format.end
        self._tools = tools
        self.name = ""
        self.verdict = Verdict.OPEN
        self.closed = False
        self.complete = False
        self._state = _State.NAME
        self._schema: Mapping[str, object] = {}
        self._num_arguments = 0
        self._is_text = False
        """Whether the current value is a string that is passed on as it is written."""
        self._is_begun = False
        """Whether the current value's first character has been read."""
        self._value: list[str] = []
        self._arguments: list[str] = []

    def push(self, text: str, begin: int, *, final: bool = False) -> int:
        """As `ToolCallReader.push`."""
        index: int | None = begin
        while index is not None and not self.closed and self.verdict is not Verdict.TEXT:
            begin = index
            index = self._step(text, begin, final)
        return begin if index is None else index

    def take_arguments(self) -> str:
        """Returns the arguments' text since the last time."""
        text = "".join(self._arguments)
        self._arguments.clear()
        return text

    def _step(self, text: str, begin: int, final: bool) -> int | None:
        """Takes a part of the call; returns where the next one begins, None if text is missing."""
        if self._state is _State.VALUE:
            return self._step_value(text, begin, final)
        index = _skip_space(text, begin)
        if self._state is _State.NAME:
            return self._step_name(text, index, final)
        return self._step_key(text, index, final)

    def _step_name(self, text: str, index: int, final: bool) -> int | None:
        opening, closing = self._tags.name
        if not text.startswith(opening, index):
            return None if _may_become(text, index, opening, final) else self._fail(index)
        begin = index + len(opening)
        found = _NAME.match(text, begin)
        end = begin if found is None else found.end()
        if end == len(text) and end - begin <= _MAX_NAME and not final:
            return None
        name = text[begin:end]
        following = text[end : end + 1]
        delimited = following == closing if closing else following.isspace() or following == "<"
        if name not in self._tools or not delimited:
            return self._fail(index)
        self.name = name
        self.verdict = Verdict.CALL
        self._schema = schema_of(self._tools, name)
        self._state = _State.KEY
        return end + len(closing)

    def _step_key(self, text: str, index: int, final: bool) -> int | None:
        opening, closing = self._tags.key
        if text.startswith(opening, index):
            return self._step_parameter(text, index + len(opening), closing, final)
        if self._tags.end and text.startswith(self._tags.end, index):
            self.complete = True
            return self._close(index + len(self._tags.end))
        if text.startswith(self._end, index):
            self.complete = not self._tags.end
            return self._close(index)
        markers = (opening, self._tags.end, self._end)
        if any(_may_become(text, index, marker, final) for marker in markers if marker):
            return None
        return None if index == len(text) else self._close(index)

    def _step_parameter(self, text: str, begin: int, closing: str, final: bool) -> int | None:
        end = text.find(closing, begin, begin + _MAX_NAME + len(closing))
        if end < 0:
            waits = len(text) - begin < _MAX_NAME + len(closing)
            return None if waits else self._close(begin)
        index = end + len(closing)
        if self._tags.value:
            index = _skip_space(text, index)
            if not text.startswith(self._tags.value, index):
                if _may_become(text, index, self._tags.value, final):
                    return None
                return self._close(begin)
            index += len(self._tags.value)
        self._begin_value(text[begin:end].strip())
        return index

    def _begin_value(self, key: str) -> None:
        before = ", " if self._num_arguments else "{"
        self._num_arguments += 1
        self._arguments.append(f"{before}{json.dumps(key, ensure_ascii=False)}: ")
        self._types = types_of(self._schema, key)
        self._is_text = self._types == {"string"}
        self._is_begun = False
        self._state = _State.VALUE
        if self._is_text:
            self._arguments.append('"')

    def _step_value(self, text: str, begin: int, final: bool) -> int | None:
        if not self._is_begun:
            if begin == len(text):
                return None
            self._is_begun = True
            if self._tags.padded and text[begin] == "\n":
                return begin + 1
        markers = (self._tags.value_end, self._end)
        found = [(at, marker) for marker in markers if (at := text.find(marker, begin)) >= 0]
        if found:
            at, marker = min(found)
            value = text[begin:at]
            self._take(value.removesuffix("\n") if self._tags.padded else value)
            self._end_value()
            return at + len(marker) if marker == self._tags.value_end else at
        end = len(text)
        if not final:
            end -= max(overlap(text[begin:], marker) for marker in markers)
            if self._tags.padded and text[begin:end].endswith("\n"):
                end -= 1  # it is dropped if the value ends after it
        self._take(text[begin:end])
        return end if end > begin else None

    def _take(self, text: str) -> None:
        if self._is_text:
            self._arguments.append(json.dumps(text, ensure_ascii=False)[1:-1])
        else:
            self._value.append(text)

    def _end_value(self) -> None:
        self._state = _State.KEY
        if self._is_text:
            self._arguments.append('"')
            return
        self._arguments.append(json_of("".join(self._value), self._types))
        self._value.clear()

    def _fail(self, index: int) -> int:
        self.verdict = Verdict.TEXT
        return index

    def _close(self, index: int) -> int:
        self.closed = True
        self._arguments.append("}" if self._num_arguments else "{}")
        return index


def _skip_space(text: str, index: int) -> int:
    found = _SPACE.match(text, index)
    return index if found is None else found.end()


def _may_become(text: str, index: int, marker: str, final: bool) -> bool:
    """Whether the rest of the text is a proper beginning of the marker, and more may follow."""
    return not final and len(text) - index < len(marker) and marker.startswith(text[index:])
