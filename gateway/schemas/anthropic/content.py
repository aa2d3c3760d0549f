"""The content blocks of a request to the Messages API, and their text for the chat template."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import BeforeValidator, Field, PlainValidator, ValidationError

from gateway.schemas.common import Body
from gateway.validation.field_error import FieldError
from gateway.validation.problems import field_error_of, given_value, json_kind

Model = TypeVar("Model", bound=Body)


def one_of(models: Mapping[str, type[Model]]) -> Callable[[object], Model]:
    """A validator of objects whose `type` names one of `models`; it raises FieldError."""

    def parse(value: object) -> Model:
        if not isinstance(value, dict):
            raise FieldError(f"must be an object, given {json_kind(value)}")
        kind = value.get("type")
        model = models.get(kind) if isinstance(kind, str) else None
        if model is None:
            raise FieldError(f"must be {_either(models)}, given {given_value(kind)}", "type")
        try:
            return model.model_validate(value, strict=True)
        except ValidationError as error:
            raise field_error_of(error) from None

    return parse


def _either(names: Iterable[str]) -> str:
    *others, last = (f"'{name}'" for name in names)
    return f"{', '.join(others)} or {last}" if others else last


def as_blocks(value: object) -> object:
    """A string as one text block; anything else unchanged."""
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


class Block(Body):
    """The fields of every content block."""

    cache_control: dict[str, Any] | None = Field(
        None, description="Accepted for compatibility: prefixes are cached automatically."
    )


class TextBlock(Block):
    """A text."""

    type: Literal["text"]
    text: str
    citations: list[dict[str, Any]] | None = Field(
        None, description="Accepted for compatibility; ignored."
    )

    @property
    def rendered(self) -> str:
        """The text that the model reads."""
        return self.text


Texts: TypeAlias = Annotated[
    list[Annotated[TextBlock, PlainValidator(one_of({"text": TextBlock}))]],
    BeforeValidator(as_blocks, json_schema_input_type=str | list[TextBlock]),
]
"""A string or text blocks."""


def joined(texts: Iterable[str]) -> str:
    """The texts of blocks as one, with line feeds between, as in chat completions."""
    return "\n".join(texts)


class SearchResultBlock(Block):
    """A passage that was found."""

    type: Literal["search_result"]
    source: str
    title: str
    content: Texts
    citations: dict[str, Any] | None = Field(
        None, description="Accepted for compatibility; ignored."
    )

    @property
    def rendered(self) -> str:
        """Title, source and passage, one after another."""
        return joined([self.title, self.source, *(each.rendered for each in self.content)])


class TextSource(Body):
    """The text of a document."""

    type: Literal["text"]
    media_type: Literal["text/plain"] = "text/plain"
    data: str


class ContentSource(Body):
    """The text of a document as content blocks."""

    type: Literal["content"]
    content: Texts


class DocumentBlock(Block):
    """A document; only plain text is supported."""

    type: Literal["document"]
    source: Annotated[
        TextSource | ContentSource,
        PlainValidator(
            one_of({"text": TextSource, "content": ContentSource}),
            json_schema_input_type=TextSource | ContentSource,
        ),
    ]
    title: str | None = None
    context: str | None = None
    citations: dict[str, Any] | None = Field(
        None, description="Accepted for compatibility; ignored."
    )

    @property
    def rendered(self) -> str:
        """Title, context and text, one after another."""
        source = self.source
        texts = (
            [source.data]
            if isinstance(source, TextSource)
            else [each.rendered for each in source.content]
        )
        return joined([*filter(None, (self.title, self.context)), *texts])


class ThinkingBlock(Body):
    """Reasoning of the assistant in an earlier turn."""

    type: Literal["thinking"]
    thinking: str
    signature: str = Field("", description="Not verified.")


class RedactedThinkingBlock(Body):
    """Encrypted reasoning of another server, which no model here can read: it is left out."""

    type: Literal["redacted_thinking"]
    data: str


class ToolUseBlock(Block):
    """A call of a tool in an earlier turn."""

    type: Literal["tool_use"]
    id: str = Field(min_length=1, max_length=200)
    name: str = Field(min_length=1, max_length=200)
    input: dict[str, Any]
    caller: dict[str, Any] | None = Field(None, description="Accepted for compatibility; ignored.")


ResultPart: TypeAlias = TextBlock | SearchResultBlock | DocumentBlock
"""Blocks that have a text."""

_RESULT_PARTS: Mapping[str, type[ResultPart]] = {
    "text": TextBlock,
    "search_result": SearchResultBlock,
    "document": DocumentBlock,
}


class ToolResultBlock(Block):
    """The result of a tool."""

    type: Literal["tool_result"]
    tool_use_id: str = Field(min_length=1, max_length=200)
    content: Annotated[
        list[
            Annotated[
                ResultPart, PlainValidator(one_of(_RESULT_PARTS), json_schema_input_type=ResultPart)
            ]
        ],
        BeforeValidator(
            lambda value: [] if value is None else as_blocks(value),
            json_schema_input_type=str | list[ResultPart] | None,
        ),
    ] = Field(default_factory=list)
    is_error: bool | None = Field(
        None, description="The tool failed: the model reads `Error: ` before the content."
    )

    @property
    def rendered(self) -> str:
        """The result's text."""
        text = joined(each.rendered for each in self.content)
        return f"Error: {text}" if self.is_error else text


InputBlock: TypeAlias = (
    TextBlock
    | SearchResultBlock
    | DocumentBlock
    | ThinkingBlock
    | RedactedThinkingBlock
    | ToolUseBlock
    | ToolResultBlock
)

BLOCKS: Mapping[str, type[InputBlock]] = {
    **_RESULT_PARTS,
    "thinking": ThinkingBlock,
    "redacted_thinking": RedactedThinkingBlock,
    "tool_use": ToolUseBlock,
    "tool_result": ToolResultBlock,
}

BLOCKS_OF_ROLE: Mapping[str, frozenset[str]] = {
    "user": frozenset({*_RESULT_PARTS, "tool_result"}),
    "assistant": frozenset({"text", "thinking", "redacted_thinking", "tool_use"}),
    "system": frozenset({"text"}),
}
"""Types of the blocks that a message of each role may have."""
