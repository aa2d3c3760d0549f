"""`POST /v1/responses`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from gateway.schemas.common import Body
from gateway.schemas.responses.items import (
    IGNORED,
    Input,
    SearchCallItem,
    UnsupportedItem,
    new_item_id,
)
from gateway.schemas.responses.tools import (
    Choice,
    FunctionTool,
    ResponseToolChoice,
    ResponseTools,
    SearchTool,
    TextOptions,
    UnsupportedTool,
)
from gateway.schemas.sampling import SamplingParameters, bounded, check_min_tokens
from gateway.validation.field_error import FieldError

LOGPROBS = "message.output_text.logprobs"
MAX_METADATA = 16


class ReasoningOptions(Body):
    """Options of the reasoning, passed to the chat template as `reasoning_effort`."""

    effort: str | None = Field(
        default=None,
        max_length=64,
        description="Passed to the chat template as reasoning_effort; none also sets "
        "enable_thinking to false.",
    )
    summary: str | None = Field(default=None, description=IGNORED)
    generate_summary: str | None = Field(default=None, description=IGNORED)


class ResponseStreamOptions(Body):
    """Options of a streamed response."""

    include_obfuscation: bool | None = Field(
        default=None, description="Accepted for compatibility; ignored: events are not padded."
    )


MetadataKey = Annotated[str, StringConstraints(max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]


class ResponsesRequest(SamplingParameters):
    """Input that the model answers."""

    input: Input = Field([], description="A text, or a list of items.", validate_default=False)
    instructions: str | None = Field(
        default=None, description="System message before the input; not kept for the next response."
    )
    previous_response_id: str | None = Field(
        default=None, max_length=256, description="A stored response, whose conversation continues."
    )
    store: bool = Field(True, description="Keep the response and its conversation for a time.")
    background: bool = Field(
        False,
        description="Generate independently of the connection; needs store. Without stream the "
        "response is returned at once.",
    )
    tools: ResponseTools = Field(
        [],
        description="Functions that the model may call, and web_search or file_search, which "
        "search the documents of Weir's retriever. Tools of other types are ignored.",
    )
    tool_choice: ResponseToolChoice = Field(
        Choice(),
        description="auto: the model decides; none: no call; required: at least one call; or one "
        "tool that must be called; or the tools that may be.",
        json_schema_extra={"default": "auto"},
    )
    parallel_tool_calls: bool = Field(True, description="Allow several calls in one response.")
    max_tool_calls: int | None = Field(
        default=None, ge=0, description="Most searches in one response; at most 4 in any case."
    )
    text: TextOptions = TextOptions()
    max_output_tokens: Annotated[int | None, bounded("max_tokens")] = Field(
        default=None,
        description="Most tokens to generate, reasoning included; default: as many as the context "
        "has room for.",
    )
    top_logprobs: Annotated[int | None, bounded("num_logprobs")] = Field(
        default=None, description="Most likely alternatives to return at each position, 0 to 20."
    )
    include: list[str] = Field(
        [],
        max_length=20,
        description="message.output_text.logprobs, web_search_call.action.sources and "
        "file_search_call.results add those fields; others are ignored.",
    )
    reasoning: ReasoningOptions = ReasoningOptions()
    metadata: dict[MetadataKey, MetadataValue] = Field(
        {}, max_length=MAX_METADATA, description="Up to 16 texts, returned with the response."
    )
    truncation: Literal["auto", "disabled"] = Field(
        "disabled",
        description="auto: leave out the oldest messages if they exceed the context.",
    )
    stream_options: ResponseStreamOptions = ResponseStreamOptions()
    prompt_cache_key: str | None = Field(default=None, description=IGNORED)
    safety_identifier: str | None = Field(default=None, description=IGNORED)
    conversation: object | None = Field(
        default=None, description="Not supported: must be null. Use previous_response_id."
    )
    prompt: object | None = Field(default=None, description="Not supported: must be null.")

    @model_validator(mode="after")
    def _check(self) -> ResponsesRequest:
        for name in ("conversation", "prompt"):
            if getattr(self, name) is not None:
                raise FieldError("must be null: it is not supported", name)
        if self.background and not self.store:
            raise FieldError("must be true where background is true, given false", "store")
        if not self.input and self.previous_response_id is None and self.instructions is None:
            raise FieldError("is required", "input")
        if self.text.format.type == "json_schema" and self.text.format.schema_ is None:
            raise FieldError("is required", "text", "format", "schema")
        check_min_tokens(self.min_tokens, "max_output_tokens", self.max_output_tokens)
        self._check_tools()
        return self

    def _check_tools(self) -> None:
        functions = {tool.name for tool in self.functions}
        searches = self.searches
        for name in searches & functions:
            raise FieldError(
                f"must have no function {name!r} beside the search tool of this name", "tools"
            )
        choice = self.tool_choice
        if choice.search and choice.search not in searches:
            raise FieldError("must be one of tools, given another", "tool_choice", "type")
        if choice.mode == "required" and not (functions or searches):
            raise FieldError("must come with tools, given none", "tool_choice")

    @property
    def functions(self) -> list[FunctionTool]:
        """The functions of the client."""
        return [tool for tool in self.tools if isinstance(tool, FunctionTool)]

    @property
    def searches(self) -> set[str]:
        """The names of the functions that search."""
        return {tool.function_name for tool in self.tools if isinstance(tool, SearchTool)}

    @property
    def num_logprobs(self) -> int | None:
        """Number of alternatives at each position; None: no log probabilities."""
        wanted = LOGPROBS in self.include or bool(self.top_logprobs)
        return (self.top_logprobs or 0) if wanted else None

    def dropped(self) -> list[str]:
        """Paths of tools and items of types that do not exist here."""
        tools = (
            f"tools[{number}] ({tool.type})"
            for number, tool in enumerate(self.tools)
            if isinstance(tool, UnsupportedTool)
        )
        items = (
            f"input[{number}] ({item.type})"
            for number, item in enumerate(self.input)
            if isinstance(item, UnsupportedItem)
        )
        return [*tools, *items]

    def input_items(self) -> list[dict[str, object]]:
        """The items to keep for the next response, as JSON values with ids."""
        left_out = (UnsupportedItem, SearchCallItem)
        return [
            {"id": new_item_id(item), **item.model_dump(exclude_none=True)}
            for item in self.input
            if not isinstance(item, left_out)
        ]
