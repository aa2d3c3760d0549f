"""Which formats of calls and reasoning an operator has set, instead of those of the template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

from orchestrator.text.tools.formats import AUTO, NONE, REASONING_FORMATS, TOOL_FORMATS
from orchestrator.text.tools.tool_format import AnswerFormat, ReasoningFormat, ToolFormat

Format = TypeVar("Format", ToolFormat, ReasoningFormat)


class FormatChoice(NamedTuple):
    """Names in the registry for one model; `auto`: what its chat template shows."""

    tools: str = AUTO
    reasoning: str = AUTO

    def of(self, detected: AnswerFormat) -> AnswerFormat:
        """The formats to use."""
        return AnswerFormat(
            _chosen(self.tools, detected.tools, TOOL_FORMATS),
            _chosen(self.reasoning, detected.reasoning, REASONING_FORMATS),
        )


DETECTED = FormatChoice()


def _chosen(name: str, detected: Format | None, formats: Mapping[str, Format]) -> Format | None:
    if name == AUTO:
        return detected
    return None if name == NONE else formats[name]


class FormatChoices:
    """The choices of all models."""

    def __init__(self, tools: str = AUTO, reasoning: str = AUTO) -> None:
        """Settings, each a name or comma-separated MODEL=NAME. Raises ValueError."""
        self._tools = parse_choice(tools, TOOL_FORMATS)
        self._reasoning = parse_choice(reasoning, REASONING_FORMATS)

    def of(self, model: str) -> FormatChoice:
        """The choice for a model."""
        return FormatChoice(
            self._tools.get(model, self._tools.get("", AUTO)),
            self._reasoning.get(model, self._reasoning.get("", AUTO)),
        )


def parse_choice(setting: str, formats: Mapping[str, object]) -> dict[str, str]:
    """Names by model; "" is for all other models. Raises ValueError for an unknown name."""
    names = {}
    for entry in setting.split(","):
        model, _, name = entry.strip().rpartition("=")
        if name not in (AUTO, NONE, *formats):
            known = ", ".join([AUTO, *formats, NONE])
            raise ValueError(
                f"must be one of {known}, or MODEL=NAME for each model, given {name!r}"
            )
        names[model] = name
    return names
