"""Tools of a response in OpenAI's flat form, the choice between them, and the text's format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

from pydantic import Field, PlainValidator, ValidationError

from gateway.schemas.common import Body, to_json
from gateway.schemas.responses.items import IGNORED
from gateway.schemas.tools import MAX_TOOLS, check_function
from gateway.validation.field_error import FieldError
from gateway.validation.problems import field_error_of, given_value, json_kind
from mesh.protocol.constraints import ConstraintForm, OutputConstraint

WEB_SEARCH = "web_search"
FILE_SEARCH = "file_search"

SEARCH_TOOLS: Mapping[str, str] = {
    "web_search": WEB_SEARCH,
    "web_search_2025_08_26": WEB_SEARCH,
    "web_search_preview": WEB_SEARCH,
    "web_search_preview_2025_03_11": WEB_SEARCH,
    "file_search": FILE_SEARCH,
}
"""Types of OpenAI's search tools, and the name of the function that the model calls for each."""


class FunctionTool(Body):
    """A function that the model may call."""

    type: Literal["function"]
    name: str = Field(description="1 to 64 letters, digits, '_', '.' or '-'.")
    description: str | None = None
    parameters: dict[str, Any] | None = Field(default=None, description="Its JSON schema.")
    strict: bool | None = None

    def in_chat_form(self) -> dict[str, object]:
        """The tool as chat templates render it."""
        function: dict[str, object] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        if self.parameters is not None:
            function["parameters"] = self.parameters
        if self.strict is not None:
            function["strict"] = self.strict
        return {"type": "function", "function": function}


class SearchTool(Body):
    """A search of the documents that Weir's retriever finds."""

    type: Literal[
        "web_search",
        "web_search_2025_08_26",
        "web_search_preview",
        "web_search_preview_2025_03_11",
        "file_search",
    ]
    max_num_results: int | None = Field(
        default=None, ge=1, le=50, description="Most results of one search, for file_search."
    )

    @property
    def function_name(self) -> str:
        """The function that the model calls."""
        return SEARCH_TOOLS[self.type]


class UnsupportedTool(NamedTuple):
    """A hosted tool that does not exist here. It is dropped and named."""

    type: str


Tool: TypeAlias = FunctionTool | SearchTool | UnsupportedTool


def _tool(value: object) -> Tool:
    if not isinstance(value, dict):
        raise FieldError(f"must be an object, given {json_kind(value)}")
    fields = {name: field for name, field in value.items() if field is not None}
    kind = fields.get("type")
    if not isinstance(kind, str):
        raise FieldError(f"must be a string, given {given_value(kind)}", "type")
    if kind != "function" and kind not in SEARCH_TOOLS:
        return UnsupportedTool(kind)
    if kind == "function":
        check_function(fields)
    model = FunctionTool if kind == "function" else SearchTool
    try:
        return model.model_validate(fields, strict=True)
    except ValidationError as error:
        raise field_error_of(error) from None


def _tools(value: object) -> list[Tool]:
    if not isinstance(value, list):
        raise FieldError(f"must be an array, given {given_value(value)}")
    if len(value) > MAX_TOOLS:
        raise FieldError(f"must have at most {MAX_TOOLS} items, given {len(value)}")
    tools = []
    for number, each in enumerate(value):
        try:
            tools.append(_tool(each))
        except FieldError as error:
            raise FieldError(error.requirement, number, *error.path) from None
    return tools


ResponseTools = Annotated[
    list[Tool],
    PlainValidator(_tools, json_schema_input_type=list[FunctionTool | SearchTool]),
]


class Choice(NamedTuple):
    """Which of the tools the model calls."""

    mode: Literal["auto", "none", "required"] = "auto"
    name: str = ""
    """The only function to call; empty: any."""
    search: str = ""
    """The function name of the search that must be made; empty: none."""
    allowed: frozenset[str] | None = None
    """Names of the functions that may be called; None: all."""


_FORMS = (
    'must be "auto", "none", "required", {"type": "function", "name": …}, the type of a search '
    'tool, or {"type": "allowed_tools", "mode": …, "tools": […]}'
)


def _choice(value: object) -> Choice:
    match value:
        case "auto" | "none" | "required":
            return Choice(value)
        case {"type": "function", "name": str(name)}:
            return Choice("required", name)
        case {"type": str(kind)} if kind in SEARCH_TOOLS:
            return Choice("required", search=SEARCH_TOOLS[kind])
        case {"type": "allowed_tools", "mode": "auto" | "required" as mode, "tools": list(tools)}:
            return Choice(mode, allowed=frozenset(_allowed(tools)))
    raise FieldError(f"{_FORMS}, given {given_value(value)}")


def _allowed(tools: Sequence[object]) -> list[str]:
    names = []
    for number, each in enumerate(tools):
        match each:
            case {"type": "function", "name": str(name)}:
                names.append(name)
            case {"type": str(kind)}:
                names.append(SEARCH_TOOLS.get(kind, ""))
            case _:
                raise FieldError(
                    f'must be {{"type": …, "name": …}}, given {json_kind(each)}', "tools", number
                )
    return names


class ChosenTool(Body):
    """The tool that must be called, or the tools that may be."""

    type: str
    name: str = ""
    mode: Literal["auto", "required"] = "auto"
    tools: list[dict[str, Any]] | None = None


ResponseToolChoice = Annotated[
    Choice,
    PlainValidator(
        _choice, json_schema_input_type=Literal["auto", "none", "required"] | ChosenTool
    ),
]


class TextFormat(Body):
    """The format of the text."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str = ""
    description: str | None = None
    schema_: dict[str, Any] | None = Field(
        default=None, alias="schema", description="The JSON schema, for json_schema."
    )
    strict: bool | None = Field(
        default=None, description="Accepted for compatibility: the schema is always enforced."
    )


class TextOptions(Body):
    """Options of the text."""

    format: TextFormat = TextFormat()
    verbosity: str | None = Field(default=None, description=IGNORED)

    def constraint(self) -> OutputConstraint | None:
        """The constraint for the orchestrator; None allows any text. Raises MeshError."""
        if self.format.type == "json_object":
            return OutputConstraint(ConstraintForm.JSON_OBJECT)
        if self.format.type == "json_schema" and self.format.schema_ is not None:
            schema = to_json(self.format.schema_, "text.format.schema")
            return OutputConstraint(ConstraintForm.JSON_SCHEMA, schema)
        return None
