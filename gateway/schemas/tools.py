"""OpenAI's tools, tool choice and response format."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from gateway.schemas.common import Answer, Body, to_json
from gateway.validation.field_error import FieldError
from gateway.validation.problems import given_value, json_kind
from mesh.protocol.chat import ToolChoice
from mesh.protocol.constraints import ConstraintForm, OutputConstraint

MAX_TOOLS = 128

_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")


class Function(Body):
    """A function that the model may call."""

    name: str = Field(description="1 to 64 letters, digits, '_', '.' or '-'.")
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="A JSON schema of an object.")
    strict: bool | None = None


class Tool(Body):
    """A tool; only functions are supported."""

    type: Literal["function"]
    function: Function


def check_function(function: Mapping[str, object]) -> None:
    """Check the name and the parameters of a function. Raises FieldError."""
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise FieldError(
            f"must be 1 to 64 letters, digits, '_', '.' or '-', given {given_value(name)}", "name"
        )
    parameters = function.get("parameters")
    if not isinstance(parameters, dict | None):
        raise FieldError(f"must be an object, given {json_kind(parameters)}", "parameters")
    kind = (parameters or {}).get("type", "object")
    if kind != "object":
        requirement = f"must be 'object', given {given_value(kind)}"
        raise FieldError(requirement, "parameters", "type")


def _tool(value: object) -> object:
    """Check a tool and return it unchanged, because templates render whole tools."""
    if not isinstance(value, dict):
        raise FieldError(f"must be an object, given {json_kind(value)}")
    if value.get("type") != "function":
        raise FieldError(f"must be 'function', given {given_value(value.get('type'))}", "type")
    function = value.get("function")
    if not isinstance(function, dict):
        raise FieldError(f"must be an object, given {json_kind(function)}", "function")
    try:
        check_function(function)
    except FieldError as error:
        raise FieldError(error.requirement, "function", *error.path) from None
    return value


Tools = Annotated[
    list[Annotated[dict[str, Any], BeforeValidator(_tool, json_schema_input_type=Tool)]],
    Field(max_length=MAX_TOOLS),
]


class FunctionName(Body):
    """The name of a function."""

    name: str


class NamedTool(Body):
    """The tool that must be called."""

    type: Literal["function"]
    function: FunctionName


def _tool_choice(value: object) -> object:
    if isinstance(value, str):
        if value not in ("auto", "none", "required"):
            raise FieldError(
                f'must be "auto", "none", "required" or a tool\'s name, given {given_value(value)}'
            )
        return value
    function = value.get("function") if isinstance(value, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(value, dict) or value.get("type") != "function" or not isinstance(name, str):
        raise FieldError(
            'must be a string, or {"type": "function", "function": {"name": …}}, '
            f"given {json_kind(value)}"
        )
    return ToolChoice(name=name)


ToolChoiceField = Annotated[
    str | ToolChoice,
    BeforeValidator(
        _tool_choice,
        json_schema_input_type=Literal["auto", "none", "required"] | NamedTool,
    ),
]


class JsonSchema(Body):
    """A JSON schema that the text must match."""

    name: str = ""
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = Field(
        None, description="Accepted for compatibility: the schema is always enforced."
    )


class ResponseFormat(Body):
    """The format of the text."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None

    def constraint(self) -> OutputConstraint | None:
        """The constraint for the orchestrator; None allows any text. Raises MeshError."""
        if self.type == "json_object":
            return OutputConstraint(ConstraintForm.JSON_OBJECT)
        if self.type == "json_schema" and self.json_schema is not None:
            field = "response_format.json_schema.schema"
            schema = to_json(self.json_schema.schema_, field)
            return OutputConstraint(ConstraintForm.JSON_SCHEMA, schema)
        return None


class CalledFunction(Answer):
    """The called function and its arguments as JSON."""

    name: str
    arguments: str


class ToolCall(Answer):
    """A tool call of the model."""

    id: str
    type: Literal["function"]
    function: CalledFunction
