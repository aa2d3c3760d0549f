"""`POST /v1/embeddings`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PlainValidator

from gateway.schemas.common import Answer, Body
from gateway.schemas.completions import Prompts, parse_prompts
from gateway.upstream.field_names import FieldNames
from gateway.validation.field_error import FieldError
from mesh.protocol.tokens import TokenIds

MAX_INPUTS = 2048


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
        description="Name of a served model, as /v1/models lists it. May be empty if one is "
        "served.",
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
        "most the model's hidden size, which is the default.",
    )
    user: str | None = Field(None, description="Accepted for compatibility; ignored.")

    def inputs(self) -> list[str | TokenIds]:
        """The inputs for the orchestrator."""
        return [each if isinstance(each, str) else TokenIds(each) for each in self.input.items]

    def names(self) -> FieldNames:
        """Names of the fields in errors."""
        return NAMES if self.input.is_list else NAMES.and_also({"input[0]": "input"})


NAMES = FieldNames(EmbeddingRequest.model_fields, {})


class Embedding(Answer):
    """An embedding, normalised to length 1."""

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
