"""`POST /tokenize` and `POST /detokenize`, in vLLM's form."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, PlainValidator, model_validator

from gateway.schemas.chat import Messages, chat_messages
from gateway.schemas.common import MAX_UINT32, Answer, Body, to_json
from gateway.schemas.tools import Tools
from gateway.upstream.field_names import FieldNames
from gateway.upstream.tokenization import Detokenization, Tokenization
from gateway.validation.field_error import FieldError
from gateway.validation.problems import given_value, json_kind
from mesh.protocol.chat import ChatPrompt

Model = Annotated[
    str,
    Field(
        max_length=500,
        description="Name of a served model, as /v1/models lists it. May be empty if one is "
        "served.",
    ),
]


class TokenizeRequest(Body):
    """A text or a conversation to encode."""

    model: Model = ""
    prompt: str | None = Field(None, description="A text; instead of messages.")
    messages: Messages | None = Field(
        None, description="A conversation, rendered by the chat template; instead of prompt."
    )
    tools: Tools = Field([], description="Functions for the chat template, at most 128.")
    add_generation_prompt: bool | None = Field(
        None,
        description="Begin the assistant's answer at the end of the prompt; true by default, "
        "unless continue_final_message is true.",
    )
    continue_final_message: bool = Field(
        False, description="Leave the last message open instead of starting a new one."
    )
    chat_template_kwargs: dict[str, Any] = Field(
        {}, description="Further variables of the chat template."
    )
    add_special_tokens: bool | None = Field(
        None,
        description="Add the tokenizer's special tokens, such as BOS. Default: true for a prompt, "
        "false for messages, whose chat template writes them.",
    )
    return_token_strs: bool = Field(
        False, description="Return the tokens as the vocabulary spells them, too."
    )

    @model_validator(mode="after")
    def _check(self) -> TokenizeRequest:
        if self.prompt is None and self.messages is None:
            raise FieldError("is required, or messages", "prompt")
        if self.prompt is not None and self.messages is not None:
            raise FieldError("must not come with messages", "prompt")
        if self.continue_final_message and self.add_generation_prompt:
            requirement = "must be false with continue_final_message true, given true"
            raise FieldError(requirement, "add_generation_prompt")
        return self

    def tokenization(self) -> Tokenization:
        """The request for the orchestrator. Raises MeshError."""
        special = self.add_special_tokens
        if special is None:
            special = self.prompt is not None
        return Tokenization(self.model, self._prompt(), special, self.return_token_strs, NAMES)

    def _prompt(self) -> ChatPrompt | str:
        if self.prompt is not None:
            return self.prompt
        kwargs = self.chat_template_kwargs
        return ChatPrompt(
            messages=chat_messages(self.messages or ()),
            tools_json=to_json(self.tools, "tools") if self.tools else "",
            continue_final_message=self.continue_final_message,
            template_kwargs_json=to_json(kwargs, "chat_template_kwargs") if kwargs else "",
            omit_generation_prompt=self.add_generation_prompt is False,
        )


NAMES = FieldNames(TokenizeRequest.model_fields, {"template_kwargs": "chat_template_kwargs"})


class TokenizeAnswer(Answer):
    """The tokens of a prompt."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


def _token_ids(value: object) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise FieldError(f"must be an array of token ids, given {json_kind(value)}")
    for number, each in enumerate(value):
        if isinstance(each, bool) or not isinstance(each, int) or not 0 <= each <= MAX_UINT32:
            requirement = f"must be a token id from 0 to {MAX_UINT32}, given {given_value(each)}"
            raise FieldError(requirement, number)
    return tuple(value)


class DetokenizeRequest(Body):
    """Token ids to decode."""

    model: Model = ""
    tokens: Annotated[
        tuple[int, ...], PlainValidator(_token_ids, json_schema_input_type=list[int])
    ] = Field(description="Token ids of the model's vocabulary.")

    def detokenization(self) -> Detokenization:
        """The request for the orchestrator."""
        return Detokenization(self.model, self.tokens, DETOKENIZE_NAMES)


DETOKENIZE_NAMES = FieldNames(DetokenizeRequest.model_fields, {"token_ids": "tokens"})


class DetokenizeAnswer(Answer):
    """The text of token ids."""

    prompt: str
