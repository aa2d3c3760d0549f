"""How a family of models writes its calls of tools, told from its chat template."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

THINK_START = "<think>"
THINK_END = "</think>"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """A way to write calls. Each call is a JSON object with a name and arguments."""

    name: str
    start: str
    """Stands before a call, or before all of them."""
    end: str = ""
    """Stands behind each call; empty: nothing does."""
    bare: bool = False
    """A whole answer that is a call's JSON is one, without `start`."""
    brackets: bool = False
    """The calls behind one `start` are a JSON array."""
    separator: str
    """Between two calls, where the model is held to the format."""
    arguments: str
    """The key of the arguments, where the model is held to the format."""
    id_prefix: str = "call_"
    id_length: int = 24
    """Letters and digits behind the prefix."""


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
    # Mistral's templates refuse any other id when the call comes back in a message.
    id_prefix="",
    id_length=9,
)
"""Mistral: `[TOOL_CALLS][{"name": …, "arguments": …}]`."""


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """What a model's answers may hold beside plain text."""

    tools: ToolFormat | None = None
    """None: its template shows no way that is known here."""
    thinks: bool = False
    """Whether it thinks inside of `<think>` tags."""

    @property
    def markers(self) -> frozenset[str]:
        """Texts that must not be lost where the vocabulary has them as special tokens."""
        tags = {THINK_START, THINK_END} if self.thinks else set()
        calls = {self.tools.start, self.tools.end} if self.tools else set()
        return frozenset((tags | calls) - {""})


def answer_format(templates: Iterable[str]) -> AnswerFormat:
    """The format that these chat templates of one model show."""
    text = "\0".join(templates)
    return AnswerFormat(_tool_format(text), THINK_END in text)


def _tool_format(template: str) -> ToolFormat | None:
    if MISTRAL.start in template:
        return MISTRAL
    # Qwen3-Coder has the tags as well, and XML inside of them.
    if HERMES.start in template and "<function=" not in template:
        return HERMES
    if LLAMA3.start in template or '"parameters": ' in template:
        return LLAMA3
    return None
