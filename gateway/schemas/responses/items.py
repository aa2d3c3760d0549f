"""Input items of a response: messages, function calls, their outputs, and reasoning."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple, TypeAlias

from pydantic import BeforeValidator, Field, PlainValidator, ValidationError

from gateway.schemas.common import Body
from gateway.validation.field_error import FieldError
from gateway.validation.problems import field_error_of, given_value, json_kind
from mesh.protocol.chat import MAX_MESSAGES

_TEXT_FIELDS: Mapping[str, str] = {
    "input_text": "text",
    "output_text": "text",
    "text": "text",
    "reasoning_text": "text",
    "summary_text": "text",
    "refusal": "refusal",
}
"""The field with the text of each supported type of part."""

MAX_ID_CHARACTERS = 256

IGNORED = "Accepted for compatibility; ignored."


def _text(value: object) -> object:
    """Text, or parts with text, which are joined with line feeds."""
    if not isinstance(value, list):
        return value
    return "\n".join(_part(part, number) for number, part in enumerate(value))


def _part(part: object, number: int) -> str:
    if not isinstance(part, dict):
        raise FieldError(f"must be an object, given {json_kind(part)}", number)
    kind = part.get("type")
    field = _TEXT_FIELDS.get(kind) if isinstance(kind, str) else None
    if field is None:
        raise FieldError(f"must be 'input_text', given {given_value(kind)}", number, "type")
    text = part.get(field)
    if not isinstance(text, str):
        raise FieldError(f"must be a string, given {given_value(text)}", number, field)
    return text


class InputTextPart(Body):
    """A part of a message's content; only text is supported."""

    type: Literal["input_text", "output_text", "text", "refusal"]
    text: str


Text = Annotated[str, BeforeValidator(_text, json_schema_input_type=str | list[InputTextPart])]
"""Text, or parts of it."""

ItemId = Annotated[str, Field(max_length=MAX_ID_CHARACTERS)]


class _Item(Body):
    id: ItemId | None = Field(default=None, description=IGNORED)
    status: str | None = Field(default=None, description=IGNORED)


class InputMessage(_Item):
    """A message; its type may be absent."""

    type: Literal["message"] = "message"
    role: str = Field(min_length=1, max_length=64)
    content: Text
    phase: str | None = Field(default=None, description=IGNORED)


class FunctionCallItem(_Item):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: str = Field(min_length=1, max_length=MAX_ID_CHARACTERS)
    name: str = Field(min_length=1, max_length=MAX_ID_CHARACTERS)
    arguments: str


class FunctionCallOutputItem(_Item):
    """The result of a call."""

    type: Literal["function_call_output"]
    call_id: str = Field(min_length=1, max_length=MAX_ID_CHARACTERS)
    output: Text


class ReasoningItem(_Item):
    """Reasoning that the model wrote, for chat templates that render it."""

    type: Literal["reasoning"]
    summary: Text = ""
    content: Text | None = None
    encrypted_content: str | None = Field(
        default=None, description="Accepted for compatibility; ignored: content has it."
    )

    @property
    def text(self) -> str:
        """The reasoning, or else its summary."""
        return self.content or self.summary


class SearchCallItem(NamedTuple):
    """A search that an earlier response made. Its results are not repeated to the model."""

    type: str


class UnsupportedItem(NamedTuple):
    """An item of a tool that does not exist here. It is ignored and named."""

    type: str


KeptItem: TypeAlias = InputMessage | FunctionCallItem | FunctionCallOutputItem | ReasoningItem
"""An item that the model sees."""

Item: TypeAlias = KeptItem | SearchCallItem | UnsupportedItem

_MODELS: Mapping[str, type[Body]] = {
    "message": InputMessage,
    "function_call": FunctionCallItem,
    "function_call_output": FunctionCallOutputItem,
    "reasoning": ReasoningItem,
}
_SEARCH_CALLS = ("web_search_call", "file_search_call")


_ID_PREFIXES: Mapping[str, str] = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "reasoning": "rs",
}


def new_item_id(
    item: InputMessage | FunctionCallItem | FunctionCallOutputItem | ReasoningItem,
) -> str:
    """An id for an item that the client gave none."""
    return f"{_ID_PREFIXES[item.type]}_{secrets.token_hex(24)}"


def parse_item(value: object) -> Item:
    """An item of a request, or of a stored conversation. Raises FieldError."""
    if not isinstance(value, dict):
        raise FieldError(f"must be an object, given {json_kind(value)}")
    # OpenAI's SDKs send null for fields at their defaults.
    fields = {name: field for name, field in value.items() if field is not None}
    kind = fields.get("type", "message")
    if not isinstance(kind, str):
        raise FieldError(f"must be a string, given {given_value(kind)}", "type")
    if kind == "item_reference":
        raise FieldError(
            "must be an item itself: references are not supported, send previous_response_id",
            "type",
        )
    if kind in _SEARCH_CALLS:
        return SearchCallItem(kind)
    model = _MODELS.get(kind)
    if model is None:
        return UnsupportedItem(kind)
    try:
        made: Item = model.model_validate(fields, strict=True)  # type: ignore[assignment]
    except ValidationError as error:
        raise field_error_of(error) from None
    return made


def _input(value: object) -> list[Item]:
    if isinstance(value, str):
        return [InputMessage(role="user", content=value)]
    if not isinstance(value, list):
        raise FieldError(f"must be a string or an array of items, given {given_value(value)}")
    if len(value) > MAX_MESSAGES:
        raise FieldError(f"must have at most {MAX_MESSAGES} items, given {len(value)}")
    items = []
    for number, each in enumerate(value):
        try:
            items.append(parse_item(each))
        except FieldError as error:
            raise FieldError(error.requirement, number, *error.path) from None
    return items


Input = Annotated[
    list[Item],
    PlainValidator(
        _input,
        json_schema_input_type=str | list[KeptItem],
    ),
]
"""A text, or a list of items."""
