"""How models write tool calls and reasoning. The families and their formats: `formats.py`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto

ARGS = "[ARGS]"
"""Mistral's marker between a name and its arguments."""
CALL_ID = "[CALL_ID]"
"""Mistral's marker between a name and the id of its call; older models omit both."""

HARMONY_START = "<|start|>"
HARMONY_CHANNEL = "<|channel|>"
HARMONY_MESSAGE = "<|message|>"
HARMONY_CONSTRAIN = "<|constrain|>"
HARMONY_ENDS = ("<|end|>", "<|return|>", "<|call|>", HARMONY_START, HARMONY_CHANNEL)
"""Markers that end a message; the last two also begin the next one."""


class CallStyle(Enum):
    """The notation of a call."""

    JSON = auto()
    """A JSON object with name and arguments, or a name before the object of its arguments."""
    TAGS = auto()
    """Tags around each argument."""
    PYTHON = auto()
    """A call in Python's syntax."""
    HARMONY = auto()
    """A message whose recipient is the tool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tags:
    """The texts before and after the parts of a call in tags."""

    name: tuple[str, str]
    """Before and after the name; a name without the second ends at white space or `<`."""
    key: tuple[str, str]
    value: str = ""
    """Before a value."""
    value_end: str
    end: str = ""
    """After the last value; empty: the call ends at the format's end marker."""
    padded: bool = False
    """Whether a line feed at both ends of a value is not part of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What precedes the arguments of a call whose name is not inside an object."""

    pattern: re.Pattern[str]
    """The whole head, with the name as its first group."""
    begin: re.Pattern[str]
    """Matches at least every beginning of what `pattern` matches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """How a model writes tool calls."""

    name: str
    style: CallStyle = CallStyle.JSON
    start: str
    """Marker before each call, or before all calls."""
    end: str = ""
    """Marker after each call; may be empty."""
    again: str = ""
    """Marker before each further call, where `start` is before all calls."""
    close: str = ""
    """Marker after the last call."""
    between: str = ""
    """Characters beside white space that may stand between two calls, or before `end`."""
    bare: str = ""
    """An answer that begins with this character may be a call without `start`."""
    others: tuple[str, ...] = ()
    """Further markers inside of calls."""
    brackets: bool = False
    """Mistral's: the calls after one `start` may be a JSON array."""
    head: Head | None = None
    """If a name may precede the object of its arguments."""
    tags: Tags | None = None
    name_first: bool = False
    """Whether a grammar that enforces the format writes the name before the arguments."""
    call_id: bool = False
    """Whether the call's id follows the name then."""
    separator: str = ""
    """Text between two calls, when a grammar enforces the format."""
    arguments: str = "arguments"
    """Key of the arguments, when a grammar enforces the format."""
    before_name: str = ""
    """Text before the name, when a grammar writes it first."""
    around_arguments: tuple[str, str] = ("", "")
    """Texts before and after the arguments, when a grammar writes the name before them."""
    id_prefix: str = "call_"
    id_length: int = 24
    """Number of letters and digits after the prefix."""
    constrained: ToolFormat | None = None
    """The format that a grammar enforces instead, and in which its answer is parsed: calls that
    are not in JSON cannot be constrained to the schema of their arguments."""

    @property
    def enforced(self) -> ToolFormat:
        """The format in which calls are written where a grammar constrains them."""
        return self.constrained or self


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """How a model marks its reasoning, which precedes the answer."""

    name: str
    start: str
    end: str


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """What a model's answers may contain besides plain text."""

    tools: ToolFormat | None = None
    """None: no known tool-call format."""
    reasoning: ReasoningFormat | None = None
    """None: reasoning is not marked."""

    @property
    def is_harmony(self) -> bool:
        """Whether the answer consists of messages with channels."""
        return self.tools is not None and self.tools.style is CallStyle.HARMONY

    @property
    def markers(self) -> frozenset[str]:
        """Markers that must stay in the text, also where they are special tokens."""
        markers = {self.reasoning.start, self.reasoning.end} if self.reasoning else set[str]()
        for format in (self.tools, self.tools.constrained) if self.tools else ():
            if format is not None:
                markers |= {format.start, format.end, format.again, format.close, *format.others}
        return frozenset(markers - {""})
