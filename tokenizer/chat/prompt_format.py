"""What rendering needs to know of a model: its chat templates and its added tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

DEFAULT_TEMPLATE = "default"

TOOL_TEMPLATE = "tool_use"
"""Name of the template that some models provide for requests with tools."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptFormat:
    """Chat templates and added tokens of one model."""

    templates: Mapping[str, str]
    """Sources by name; empty if the model has none."""
    variables: Mapping[str, str]
    """Named special tokens, which are variables in templates: `{"eos_token": "</s>"}`."""
    special_tokens: Sequence[str]
    """The added tokens that are special, and therefore literal in every message."""
    ordinary_tokens: Sequence[str]
    """The other added tokens, such as `<tool_call>`."""

    def to_json(self) -> str:
        """Serializes it for another process."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> PromptFormat:
        """Reads the result of `to_json`."""
        return PromptFormat(**json.loads(text))
