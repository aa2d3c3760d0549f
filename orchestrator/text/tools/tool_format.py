"""The tool-call formats of model families, recognized by their chat templates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

THINK_START = "<think>"
THINK_END = "</think>"
ARGS = "[ARGS]"
"""Mistral's marker between a name and its arguments."""
CALL_ID = "[CALL_ID]"
"""Mistral's marker between a name and the id of its call; older models omit both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """How a model writes tool calls; each call is a JSON object with a name and arguments."""

    name: str
    start: str
    """Marker before each call, or before all calls."""
    end: str = ""
    """Marker after each call; may be empty."""
    bare: bool = False
    """An answer that is only the JSON of a call is a call, without `start`."""
    brackets: bool = False
    """Mistral's: the calls after one `start` are a JSON array, or one call whose name is before
    its arguments."""
    name_first: bool = False
    """Whether a grammar that enforces the format writes the latter."""
    call_id: bool = False
    """Whether the call's id follows the name then."""
    separator: str
    """Text between two calls, when a grammar enforces the format."""
    arguments: str
    """Key of the arguments, when a grammar enforces the format."""
    id_prefix: str = "call_"
    id_length: int = 24
    """Number of letters and digits after the prefix."""


HERMES = ToolFormat(
    name="hermes",
    start="<tool_call>",
    end="</tool_call>",
    separator="\n",
    arguments="arguments",
)
"""Hermes, Qwen2.5, Qwen3: `<tool_call>{"name": …, "arguments": …}</tool_call>`."""

LLAMA3 = ToolFormat(
    name="llama3", start="<|python_tag|>", bare=True, separator="; ", arguments="parameters"
)
"""Llama 3: `{"name": …, "parameters": …}`, several with `;` between."""

MISTRAL = ToolFormat(
    name="mistral",
    start="[TOOL_CALLS]",
    brackets=True,
    separator=", ",
    arguments="arguments",
    # Mistral's templates reject any other id when a later message refers to the call.
    id_prefix="",
    id_length=9,
)
"""Mistral: `[TOOL_CALLS][{"name": …, "arguments": …}]`."""

MISTRAL_ARGS = replace(MISTRAL, name="mistral-args", name_first=True, separator="")
"""Mistral since 2025: `[TOOL_CALLS]name[ARGS]{…}` for each call."""

MISTRAL_CALL_ID = replace(MISTRAL_ARGS, name="mistral-call-id", call_id=True)
"""Mistral Small 3.2: `[TOOL_CALLS]name[CALL_ID]123456789[ARGS]{…}`."""


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """What a model's answers may contain besides plain text."""

    tools: ToolFormat | None = None
    """None: its chat template has no known tool-call format."""
    thinks: bool = False
    """Whether it writes its reasoning inside `<think>` tags."""

    @property
    def markers(self) -> frozenset[str]:
        """Markers that must stay in the text, also where they are special tokens."""
        tags = {THINK_START, THINK_END} if self.thinks else set()
        calls = {self.tools.start, self.tools.end} if self.tools else set()
        if self.tools and self.tools.brackets:
            calls |= {ARGS, CALL_ID}
        return frozenset((tags | calls) - {""})


def answer_format(templates: Iterable[str]) -> AnswerFormat:
    """The answer format of a model, from its chat templates."""
    text = "\0".join(templates)
    return AnswerFormat(_tool_format(text), THINK_END in text)


def _tool_format(template: str) -> ToolFormat | None:
    if MISTRAL.start in template:
        if CALL_ID in template:
            return MISTRAL_CALL_ID
        return MISTRAL_ARGS if ARGS in template else MISTRAL
    # Qwen3-Coder has the same tags, with XML inside.
    if HERMES.start in template and "<function=" not in template:
        return HERMES
    if LLAMA3.start in template or '"parameters": ' in template:
        return LLAMA3
    return None
