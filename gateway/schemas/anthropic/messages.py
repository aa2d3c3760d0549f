"""`POST /v1/messages` and `POST /v1/messages/count_tokens`: the requests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainValidator, model_validator

from gateway.schemas.anthropic.content import (
    BLOCKS,
    BLOCKS_OF_ROLE,
    DocumentBlock,
    InputBlock,
    SearchResultBlock,
    TextBlock,
    Texts,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    as_blocks,
    joined,
    one_of,
)
from gateway.schemas.anthropic.tools import AutoChoice, ChoiceField, CustomTool, NoChoice, Tools
from gateway.schemas.common import MAX_UINT32, Body, to_json
from gateway.schemas.sampling import SamplingParameters, check_min_tokens
from gateway.upstream.field_names import FieldNames
from gateway.upstream.generation import Generation
from gateway.validation.field_error import FieldError
from gateway.validation.problems import given_value
from mesh.protocol.chat import MAX_MESSAGES, ChatMessage, ChatPrompt
from mesh.protocol.constraints import ConstraintForm, OutputConstraint
from mesh.protocol.sampling_params import MAX_STOP_CHARACTERS, MAX_STOP_STRINGS, SamplingParams

MIN_THINKING_TOKENS = 1024


class InputMessage(Body):
    """One message of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: Annotated[
        list[
            Annotated[InputBlock, PlainValidator(one_of(BLOCKS), json_schema_input_type=InputBlock)]
        ],
        Field(min_length=1),
        BeforeValidator(as_blocks, json_schema_input_type=str | list[InputBlock]),
    ]

    @model_validator(mode="after")
    def _check(self) -> InputMessage:
        allowed = BLOCKS_OF_ROLE[self.role]
        for number, block in enumerate(self.content):
            if block.type not in allowed:
                names = ", ".join(f"'{name}'" for name in sorted(allowed))
                requirement = f"must be one of {names} in a message of role {self.role}"
                given = given_value(block.type)
                raise FieldError(f"{requirement}, given {given}", "content", number, "type")
        return self


def _not_too_many(value: object) -> object:
    """Count the messages before they are validated, because validation takes time."""
    if isinstance(value, list) and len(value) > MAX_MESSAGES:
        raise FieldError(f"must have at most {MAX_MESSAGES} items, given {len(value)}")
    return value


class EnabledThinking(Body):
    """The model reasons before it answers."""

    type: Literal["enabled"]
    budget_tokens: int = Field(
        ge=MIN_THINKING_TOKENS,
        le=MAX_UINT32,
        description="Not enforced: named in `x-ignored-fields`.",
    )
    display: Literal["summarized", "omitted"] | None = None


class AdaptiveThinking(Body):
    """The model may reason before it answers."""

    type: Literal["adaptive"]
    display: Literal["summarized", "omitted"] | None = Field(
        None, description="omitted: thinking blocks have no text."
    )


class NoThinking(Body):
    """The model answers at once."""

    type: Literal["disabled"]


class BetweenTools(Body):
    """The model may reason before it answers and between calls."""

    type: Literal["between_tools"]


Thinking = EnabledThinking | AdaptiveThinking | NoThinking | BetweenTools


class JsonFormat(Body):
    """The answer is JSON that is valid against a schema."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Body):
    """The form of the answer."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = Field(
        None,
        description="Passed to the chat template as `reasoning_effort`: low, medium or high.",
    )
    format: JsonFormat | None = None


class CountTokensRequest(Body):
    """A conversation whose tokens are counted."""

    model: str = Field(
        "",
        max_length=500,
        description="Name of a served model, as /v1/models lists it. May be empty if one is "
        "served.",
    )
    messages: Annotated[
        list[InputMessage],
        Field(min_length=1, max_length=MAX_MESSAGES),
        BeforeValidator(_not_too_many),
    ] = Field(description="The conversation. The answer continues a last message of the assistant.")
    system: Texts = Field(default_factory=list, description="Instructions before the messages.")
    tools: Tools = Field(default_factory=list, json_schema_extra={"default": []})
    tool_choice: ChoiceField = AutoChoice(type="auto", disable_parallel_tool_use=None)
    thinking: (
        Annotated[
            Thinking,
            PlainValidator(
                one_of(
                    {
                        "enabled": EnabledThinking,
                        "adaptive": AdaptiveThinking,
                        "disabled": NoThinking,
                        "between_tools": BetweenTools,
                    }
                ),
                json_schema_input_type=Thinking,
            ),
        ]
        | None
    ) = Field(
        None,
        description="Passed to the chat template as `enable_thinking` and `thinking`. Default: "
        "the model's.",
    )
    output_config: OutputConfig = OutputConfig.model_construct()
    cache_control: dict[str, Any] | None = Field(
        None, description="Accepted for compatibility: prefixes are cached automatically."
    )

    @model_validator(mode="after")
    def _check_conversation(self) -> CountTokensRequest:
        if self.tool_choice.type in ("any", "tool") and not self._custom_tools:
            raise FieldError("must come with tools, given none", "tool_choice")
        called: set[str] = set()
        for index, message in enumerate(self.messages):
            for number, block in enumerate(message.content):
                if isinstance(block, ToolUseBlock):
                    called.add(block.id)
                elif isinstance(block, ToolResultBlock) and block.tool_use_id not in called:
                    given = given_value(block.tool_use_id)
                    requirement = f"must be the id of an earlier tool_use block, given {given}"
                    path = ("messages", index, "content", number, "tool_use_id")
                    raise FieldError(requirement, *path)
        last = self.messages[-1]
        if last.role == "assistant" and isinstance(last.content[-1], ToolUseBlock):
            requirement = "must be followed by a message with a tool_result block, given none"
            raise FieldError(requirement, "messages", len(self.messages) - 1)
        return self

    @property
    def _custom_tools(self) -> list[tuple[int, CustomTool]]:
        """The tools that can be called, with their places in the request."""
        return [(n, tool) for n, tool in enumerate(self.tools) if isinstance(tool, CustomTool)]

    def unused(self) -> list[str]:
        """Paths of values that are valid and have no effect."""
        ignored = [
            f"tools[{n}]" for n, tool in enumerate(self.tools) if not isinstance(tool, CustomTool)
        ]
        if isinstance(self.thinking, EnabledThinking):
            ignored.append("thinking.budget_tokens")
        return ignored

    def generation(self) -> Generation:
        """The request to the orchestrator, for its prompt. Raises MeshError."""
        tools = [] if isinstance(self.tool_choice, NoChoice) else self._custom_tools
        kwargs = self._template_kwargs()
        prompt = ChatPrompt(
            messages=tuple(self._chat_messages()),
            tools_json=to_json([tool.openai() for _, tool in tools], "tools") if tools else "",
            continue_final_message=self.messages[-1].role == "assistant",
            template_kwargs_json=to_json(kwargs, "thinking") if kwargs else "",
        )
        renamed: dict[str, str] = {}
        for number, (place, _) in enumerate(tools):
            renamed[f"tools[{number}].function.parameters"] = f"tools[{place}].input_schema"
            renamed[f"tools[{number}].function"] = f"tools[{place}]"
        return Generation(
            model=self.model,
            prompt=prompt,
            sampling=SamplingParams(),
            tool_choice=self.tool_choice.choice() if tools else None,
            names=NAMES.and_also(renamed) if renamed else NAMES,
        )

    def _template_kwargs(self) -> dict[str, object]:
        kwargs: dict[str, object] = {}
        if self.thinking is not None:
            thinks = not isinstance(self.thinking, NoThinking)
            # Names that the templates of Qwen3 and GLM, and of DeepSeek and Granite have.
            kwargs = {"enable_thinking": thinks, "thinking": thinks}
        effort = self.output_config.effort
        if effort is not None:
            kwargs["reasoning_effort"] = "high" if effort in ("xhigh", "max") else effort
        return kwargs

    def _chat_messages(self) -> Iterator[ChatMessage]:
        """The conversation as the chat template's; consecutive turns of one role are one."""
        if self.system:
            text = joined(each.rendered for each in self.system)
            yield ChatMessage(role="system", content=text)
        for role, group in groupby(self.messages, lambda message: message.role):
            blocks = [block for message in group for block in message.content]
            if role == "assistant":
                yield _assistant_message(blocks)
                continue
            for is_result, part in groupby(
                blocks, lambda block: isinstance(block, ToolResultBlock)
            ):
                if is_result:
                    yield from _results(part)
                else:
                    yield ChatMessage(role=role, content=joined(_texts(part)))


def _texts(blocks: Iterator[InputBlock] | list[InputBlock]) -> Iterator[str]:
    """The texts of the blocks that have one for the template's content."""
    for block in blocks:
        if isinstance(block, TextBlock | SearchResultBlock | DocumentBlock):
            yield block.rendered


def _results(blocks: Iterator[InputBlock]) -> Iterator[ChatMessage]:
    for block in blocks:
        assert isinstance(block, ToolResultBlock)
        yield ChatMessage(role="tool", content=block.rendered, tool_call_id=block.tool_use_id)


def _assistant_message(blocks: list[InputBlock]) -> ChatMessage:
    calls = [
        {
            "id": block.id,
            "type": "function",
            "function": {
                "name": block.name,
                "arguments": to_json(block.input, "messages"),
            },
        }
        for block in blocks
        if isinstance(block, ToolUseBlock)
    ]
    thinking = [block.thinking for block in blocks if isinstance(block, ThinkingBlock)]
    return ChatMessage(
        role="assistant",
        content=joined(_texts(blocks)),
        tool_calls_json=json.dumps(calls, ensure_ascii=False) if calls else "",
        reasoning_content=joined(thinking),
    )


def _check_stop(value: object) -> object:
    if isinstance(value, list):
        for number, text in enumerate(value[:MAX_STOP_STRINGS]):
            if isinstance(text, str) and not 1 <= len(text) <= MAX_STOP_CHARACTERS:
                limit = f"must have 1 to {MAX_STOP_CHARACTERS} characters"
                raise FieldError(f"{limit}, given {len(text)}", number)
    return value


class Metadata(Body):
    """Data about the request."""

    user_id: str | None = Field(None, description="Accepted for compatibility; ignored.")


class MessagesRequest(CountTokensRequest, SamplingParameters):
    """A conversation that the assistant continues."""

    max_tokens: int = Field(
        ge=0,
        le=MAX_UINT32,
        description="Most tokens to generate; lowered to the room in the context. 0 reads the "
        "prompt into the prefix cache and returns no content.",
    )
    stop_sequences: Annotated[
        list[str], Field(max_length=MAX_STOP_STRINGS), BeforeValidator(_check_stop)
    ] = Field(
        default_factory=list,
        description="Strings that end the text; they are not part of it.",
        json_schema_extra={"default": []},
    )
    metadata: Metadata = Metadata.model_construct()

    @model_validator(mode="after")
    def _check(self) -> MessagesRequest:
        check_min_tokens(self.min_tokens, "max_tokens", max(1, self.max_tokens))
        if isinstance(self.thinking, EnabledThinking) and self.max_tokens:
            budget = self.thinking.budget_tokens
            if budget >= self.max_tokens:
                requirement = f"must be less than max_tokens ({self.max_tokens}), given {budget}"
                raise FieldError(requirement, "thinking", "budget_tokens")
        if self.output_config.format is not None and self.tool_choice.type in ("any", "tool"):
            requirement = "must be absent where a tool must be called, given json_schema"
            raise FieldError(requirement, "output_config", "format")
        return self

    @property
    def omits_thinking(self) -> bool:
        """Whether thinking blocks are returned without their text."""
        thinking = self.thinking
        return (
            isinstance(thinking, EnabledThinking | AdaptiveThinking)
            and thinking.display == "omitted"
        )

    def generation(self) -> Generation:
        """The request to the orchestrator. Raises MeshError."""
        return (
            super()
            .generation()
            ._replace(
                sampling=self.sampling(
                    0,
                    max_tokens=max(1, self.max_tokens),
                    num_logprobs=None,
                    constraint=self._constraint(),
                ),
                stop=(*self.stop_sequences, *self.stop),
                fit_max_tokens=True,
            )
        )

    def _constraint(self) -> OutputConstraint | None:
        format = self.output_config.format
        if format is None:
            return None
        schema = to_json(format.schema_, "output_config.format.schema")
        return OutputConstraint(ConstraintForm.JSON_SCHEMA, schema)


NAMES = FieldNames(
    MessagesRequest.model_fields,
    {
        "prompt": "messages",
        "template_kwargs": "thinking",
        "stop": "stop_sequences",
        "constraint": "output_config.format",
        "constraint.json_schema": "output_config.format.schema",
    },
)
