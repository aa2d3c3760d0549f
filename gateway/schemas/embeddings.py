"""`POST /v1/embeddings`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PlainValidator

from gateway.schemas.common import Answer, Body
from gateway.schemas.completions import Prompts, parse_prompts
from gateway.upstream.field_names import FieldNames
from gateway.upstream.generation import EmbeddingInputs, TextLimit
from gateway.validation.field_error import FieldError
from mesh.protocol.model_kind import InputUse
from mesh.protocol.tokens import TokenIds

MAX_INPUTS = 2048
MAX_TOKENS = 1 << 24
"""Above the context of any model."""

LIMIT_NAMES = {"max_tokens": "truncate_prompt_tokens"}
"""The field of a text's limit, by the services' name."""

_USES: Mapping[str | None, InputUse] = {
    "query": "query",
    "search_query": "query",
    "document": "document",
    "search_document": "document",
    "passage": "document",
}


def _truncate_tokens(value: int) -> int:
    if value == 0:
        raise FieldError("must be -1 or at least 1, given 0")
    return value


TruncateTokens = (
    Annotated[int, Field(ge=-1, le=MAX_TOKENS), AfterValidator(_truncate_tokens)] | None
)
TRUNCATE_TOKENS: int | None = Field(
    None,
    description="Cut off the end of texts with more than this many tokens, special tokens "
    "included; -1: with more than the model's context. Default: longer texts are refused.",
)


def text_limit(truncate_tokens: int | None) -> TextLimit:
    """The limit of texts that `truncate_prompt_tokens` sets."""
    if truncate_tokens is None:
        return TextLimit()
    return TextLimit(max(0, truncate_tokens), truncate=True)


def _inputs(value: object) -> Prompts:
    inputs = parse_prompts(value, MAX_INPUTS)
    for number, each in enumerate(inputs.items):
        if not each:
            path = (number,) if inputs.is_list else ()
            raise FieldError("must have at least 1 character, given 0", *path)
    return inputs


class EmbeddingRequest(Body):
    """Texts to embed."""

    model: str = Field(
        "",
        max_length=500,
        description="Name of a served model, as /v1/models lists it. May be empty if one model of "
        "the kind embedding is served, or if there is none, one other model.",
    )
    input: Annotated[
        Prompts,
        PlainValidator(
            _inputs, json_schema_input_type=str | list[str] | list[int] | list[list[int]]
        ),
    ] = Field(description="Text, token ids, or a list of up to 2048 of either.")
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="float: numbers; base64: 32-bit little-endian floats."
    )
    dimensions: int | None = Field(
        None,
        ge=1,
        description="Keep this many of the first values of each vector, scaled to length 1; at "
        "most the length of the model's embeddings, which is the default.",
    )
    truncate_prompt_tokens: TruncateTokens = TRUNCATE_TOKENS
    prompt_name: str = Field(
        "",
        max_length=100,
        description="Name of one of the model's prompts (config_sentence_transformers.json), which "
        "is put before each text. Empty: the one for input_type.",
    )
    input_type: (
        Literal["query", "search_query", "document", "search_document", "passage"] | None
    ) = Field(
        None,
        description="What the texts are used for: the model's prompt for queries or documents is "
        "put before each text, if it has one. Default: the model's default prompt, if it has one.",
    )
    user: str | None = Field(None, description="Accepted for compatibility; ignored.")

    def embedding(self) -> EmbeddingInputs:
        """The request for the orchestrator."""
        return EmbeddingInputs(
            self.model,
            self.inputs(),
            self.names(),
            text_limit(self.truncate_prompt_tokens),
            self.prompt_name,
            _USES.get(self.input_type, ""),
        )

    def inputs(self) -> list[str | TokenIds]:
        """The inputs for the orchestrator."""
        return [each if isinstance(each, str) else TokenIds(each) for each in self.input.items]

    def names(self) -> FieldNames:
        """Names of the fields in errors."""
        return NAMES if self.input.is_list else NAMES.and_also({"input[0]": "input"})


NAMES = FieldNames(EmbeddingRequest.model_fields, LIMIT_NAMES)


class Embedding(Answer):
    """An embedding; of length 1, unless an encoder's files say otherwise."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Answer):
    """Tokens of all inputs."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Answer):
    """The embeddings, in the order of the inputs."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
