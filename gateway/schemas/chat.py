"""`POST /v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from gateway.schemas.common import Answer, Body, OpenAIUsage, only, to_json
from gateway.schemas.function_calls import FUNCTION, FunctionCall, call_json, with_results
from gateway.schemas.sampling import SamplingFields, bounded, check_min_tokens
from gateway.schemas.tools import ResponseFormat, ToolCall, ToolChoiceField, Tools
from gateway.upstream.field_names import FieldNames
from gateway.upstream.generation import Generation
from gateway.validation.field_error import FieldError
from gateway.validation.problems import given_value
from mesh.protocol import chat
from mesh.protocol.chat import MAX_MESSAGES, ChatPrompt, ToolChoice


class TextPart(Body):
    """A part of a message's content; only text is supported."""

    type: Literal["text"]
    text: str


def _content(value: object) -> object:
    if not isinstance(value, list):
        return value
    texts = []
    for number, part in enumerate(value):
        if not isinstance(part, dict):
            raise FieldError(f"must be an object, given {given_value(part)}", number)
        kind = part.get("type")
        if kind not in ("text", "refusal"):
            raise FieldError(f"must be 'text', given {given_value(kind)}", number, "type")
        text = part.get(kind)
        if not isinstance(text, str):
            raise FieldError(f"must be a string, given {given_value(text)}", number, kind)
        texts.append(text)
    return "\n".join(texts)


class ChatMessage(Body):
    """One message of a conversation."""

    role: str = Field(min_length=1, max_length=64)
    content: Annotated[
        str | None,
        BeforeValidator(_content, json_schema_input_type=str | list[TextPart] | None),
    ] = Field(
        None,
        description="Text, or parts of type text (or refusal), which are joined with line feeds.",
    )
    refusal: str | None = Field(
        None, description="The assistant's refusal, as its content where it has none."
    )
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    function_call: FunctionCall | None = Field(
        None, description="OpenAI's older form of tool_calls, with one call."
    )
    reasoning_content: str | None = Field(
        None, description="The assistant's reasoning, for chat templates that render it."
    )
    reasoning: str | None = Field(
        None, description="Another name of reasoning_content, which takes precedence."
    )

    @model_validator(mode="after")
    def _check(self) -> ChatMessage:
        given = (self.content, self.refusal)
        if self.function_call is not None and self.tool_calls:
            raise FieldError("must not come with tool_calls", "function_call")
        if self.role == FUNCTION and not self.name:
            raise FieldError("is required", "name")
        has_call = self.tool_calls or self.function_call is not None
        if given == (None, None) and not has_call and not self._reasoning:
            raise FieldError("is required", "content")
        return self

    @property
    def _reasoning(self) -> str:
        return self.reasoning_content or self.reasoning or ""

    def message(self, index: int) -> chat.ChatMessage:
        """The message for the orchestrator, as number `index`. Raises MeshError."""
        field = f"messages[{index}].tool_calls"
        calls = to_json(self.tool_calls, field) if self.tool_calls else ""
        if self.function_call is not None:
            calls = call_json(self.function_call, index)
        return chat.ChatMessage(
            role=self.role,
            content=self.content or self.refusal or "",
            name=self.name or "",
            tool_calls_json=calls,
            tool_call_id=self.tool_call_id or "",
            reasoning_content=self._reasoning,
        )


def _not_too_many(value: object) -> object:
    """Count the messages before they are validated, because validation takes time."""
    if isinstance(value, list) and len(value) > MAX_MESSAGES:
        raise FieldError(f"must have at most {MAX_MESSAGES} items, given {len(value)}")
    return value


Messages = Annotated[
    list[ChatMessage],
    Field(min_length=1, max_length=MAX_MESSAGES),
    BeforeValidator(_not_too_many),
]


def chat_messages(given: Sequence[ChatMessage]) -> tuple[chat.ChatMessage, ...]:
    """The messages for the orchestrator. Raises MeshError."""
    messages = tuple(each.message(index) for index, each in enumerate(given))
    if not any(each.role == FUNCTION for each in messages):
        return messages
    older = [(index, each.function_call) for index, each in enumerate(given)]
    calls = {index: call for index, call in older if call is not None}
    return tuple(with_results(messages, calls))


class ChatCompletionRequest(SamplingFields):
    """A conversation that the assistant continues."""

    messages: Messages
    max_completion_tokens: Annotated[int | None, bounded("max_tokens")] = Field(
        None, description="OpenAI's newer name of max_tokens; takes precedence over it."
    )
    logprobs: bool = Field(False, description="Return the log probability of each token.")
    top_logprobs: Annotated[int | None, bounded("num_logprobs")] = Field(
        None, description="Most likely alternatives to return at each position; needs logprobs."
    )
    tools: Tools = Field([], description="Functions that the model may call, at most 128.")
    tool_choice: ToolChoiceField = Field(
        "auto",
        description="auto: the model decides; none: no call; required: at least one call; or "
        "one tool that must be called.",
    )
    parallel_tool_calls: bool = Field(True, description="Allow several calls in one answer.")
    response_format: ResponseFormat = ResponseFormat()
    continue_final_message: bool = Field(
        False, description="Continue the last message instead of starting a new one."
    )
    chat_template_kwargs: dict[str, Any] = Field(
        {}, description="Further variables of the chat template."
    )
    best_of: int | None = Field(None, description="Must equal n.")

    @model_validator(mode="after")
    def _check(self) -> ChatCompletionRequest:
        if self.best_of is not None:
            only(self.best_of, self.n, "best_of")
        forced = self.tool_choice not in ("auto", "none")
        if forced and not self.tools:
            raise FieldError("must come with tools, given none", "tool_choice")
        if forced and self.response_format.type != "text":
            given = given_value(self.response_format.type)
            requirement = f"must be 'text' where a tool must be called, given {given}"
            raise FieldError(requirement, "response_format", "type")
        if self.response_format.type == "json_schema" and self.response_format.json_schema is None:
            raise FieldError("is required", "response_format", "json_schema")
        if self.max_completion_tokens is None:
            check_min_tokens(self.min_tokens, "max_tokens", self.max_tokens)
        else:
            check_min_tokens(self.min_tokens, "max_completion_tokens", self.max_completion_tokens)
        if self.top_logprobs is not None and not self.logprobs:
            raise FieldError("must come with logprobs true, given false", "top_logprobs")
        return self

    def generations(self) -> list[Generation]:
        """The generations for the orchestrator, one for each choice. Raises MeshError."""
        tools = [] if self.tool_choice == "none" else self.tools
        kwargs = self.chat_template_kwargs
        prompt = ChatPrompt(
            messages=chat_messages(self.messages),
            tools_json=to_json(tools, "tools") if tools else "",
            continue_final_message=self.continue_final_message,
            template_kwargs_json=to_json(kwargs, "chat_template_kwargs") if kwargs else "",
        )
        names = NAMES
        if self.max_completion_tokens is not None:
            names = names.and_also({"max_tokens": "max_completion_tokens"})
        num_logprobs = (self.top_logprobs or 0) if self.logprobs else None
        max_tokens = self.max_completion_tokens or self.max_tokens
        constraint = self.response_format.constraint()
        return [
            Generation(
                model=self.model,
                prompt=prompt,
                sampling=self.sampling(
                    choice, max_tokens=max_tokens, num_logprobs=num_logprobs, constraint=constraint
                ),
                stop=tuple(self.stop),
                tool_choice=self._choice_of_tools() if tools else None,
                names=names,
            )
            for choice in range(self.n)
        ]

    def _choice_of_tools(self) -> ToolChoice:
        choice = self.tool_choice
        if isinstance(choice, str):
            choice = ToolChoice(required=choice == "required")
        return choice._replace(single=not self.parallel_tool_calls)


NAMES = FieldNames(
    ChatCompletionRequest.model_fields,
    {
        "prompt": "messages",
        "template_kwargs": "chat_template_kwargs",
        "num_logprobs": "top_logprobs",
        "tool_choice.name": "tool_choice.function.name",
        "constraint": "response_format",
        "constraint.json_object": "response_format",
        "constraint.json_schema": "response_format.json_schema.schema",
    },
)


class AssistantMessage(Answer):
    """The answer of the model."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str = Field(
        "", description="Reasoning of a model that writes it between tags; absent if there is none."
    )
    tool_calls: list[ToolCall] = Field([], description="Calls of tools; absent if there are none.")


class ChatChoice(Answer):
    """One choice."""

    index: int
    message: AssistantMessage
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(Answer):
    """The response without streaming."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: OpenAIUsage
