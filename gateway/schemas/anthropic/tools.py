"""The tools of the Messages API, and the choice between them."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, PlainValidator, ValidationError

from gateway.schemas.anthropic.content import Block, one_of
from gateway.schemas.common import Body
from gateway.schemas.tools import MAX_TOOLS
from gateway.validation.field_error import FieldError
from gateway.validation.problems import field_error_of, given_value, json_kind
from mesh.protocol.chat import ToolChoice

_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,128}")


class CustomTool(Block):
    """A tool that the client runs."""

    type: Literal["custom"] | None = None
    name: str = Field(description="1 to 128 letters, digits, '_', '.' or '-'.")
    description: str | None = None
    input_schema: dict[str, Any] = Field(description="A JSON schema of an object.")

    def openai(self) -> dict[str, Any]:
        """The tool in OpenAI's format, which chat templates render."""
        function: dict[str, Any] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        return {"type": "function", "function": {**function, "parameters": self.input_schema}}


class ServerTool(Body):
    """A tool that Anthropic defines: dropped, and named in `x-ignored-fields`."""

    type: str
    name: str | None = None


def _tool(value: object) -> CustomTool | dict[str, Any]:
    """The tool; one of Anthropic's own types stays a dictionary."""
    if not isinstance(value, dict):
        raise FieldError(f"must be an object, given {json_kind(value)}")
    if isinstance(value.get("type"), str) and value["type"] != "custom":
        return value
    try:
        tool = CustomTool.model_validate(value, strict=True)
    except ValidationError as error:
        raise field_error_of(error) from None
    if not _NAME.fullmatch(tool.name):
        raise FieldError(
            f"must be 1 to 128 letters, digits, '_', '.' or '-', given {given_value(tool.name)}",
            "name",
        )
    kind = tool.input_schema.get("type", "object")
    if kind != "object":
        raise FieldError(f"must be 'object', given {given_value(kind)}", "input_schema", "type")
    return tool


Tools: TypeAlias = Annotated[
    list[
        Annotated[
            CustomTool | dict[str, Any],
            PlainValidator(_tool, json_schema_input_type=CustomTool | ServerTool),
        ]
    ],
    Field(max_length=MAX_TOOLS),
]


class AutoChoice(Body):
    """The model decides whether to call tools."""

    type: Literal["auto"]
    disable_parallel_tool_use: bool | None = Field(None, description="At most one call.")

    def choice(self) -> ToolChoice:
        """The choice for the orchestrator."""
        return ToolChoice(single=bool(self.disable_parallel_tool_use))


class AnyChoice(Body):
    """The model must call a tool."""

    type: Literal["any"]
    disable_parallel_tool_use: bool | None = Field(None, description="Exactly one call.")

    def choice(self) -> ToolChoice:
        """The choice for the orchestrator."""
        return ToolChoice(required=True, single=bool(self.disable_parallel_tool_use))


class NamedChoice(Body):
    """The model must call this tool, once."""

    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: bool | None = Field(None, description="Accepted: there is one call.")

    def choice(self) -> ToolChoice:
        """The choice for the orchestrator."""
        return ToolChoice(name=self.name)


class NoChoice(Body):
    """The model cannot call tools, and does not see them."""

    type: Literal["none"]

    def choice(self) -> None:
        """There is none: the tools are left out."""


Choice: TypeAlias = AutoChoice | AnyChoice | NamedChoice | NoChoice

ChoiceField: TypeAlias = Annotated[
    Choice,
    PlainValidator(
        one_of({"auto": AutoChoice, "any": AnyChoice, "tool": NamedChoice, "none": NoChoice}),
        json_schema_input_type=Choice,
    ),
]
