"""`POST /v1/rerank` in Jina's and Cohere's form, and `POST /v1/score` in vLLM's."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field, PlainValidator, model_validator

from gateway.schemas.common import Answer, Body
from gateway.schemas.embeddings import (
    LIMIT_NAMES,
    TRUNCATE_TOKENS,
    EmbeddingUsage,
    TruncateTokens,
    text_limit,
)
from gateway.upstream.field_names import FieldNames
from gateway.upstream.generation import TextPairs
from gateway.validation.field_error import FieldError
from gateway.validation.problems import given_value

Method = Literal["embedding_similarity", "cross_encoder"]
"""How scores are made: the cosine of the angle between two embeddings, or by a model that has read
both texts together."""

MAX_TEXTS = 1000
"""Maximum documents of a reranking, and texts on each side of a scoring, as Cohere recommends."""

MODEL = Field(
    "",
    max_length=500,
    description="Name of a served model, as /v1/models lists it. May be empty if one model of the "
    "kind score is served, or if there is none, one of the kind embedding, or one other model.",
)


class Document(Body):
    """A document with its text; other fields are ignored."""

    text: str = Field(min_length=1)


def _document(value: object) -> object:
    if isinstance(value, str):
        if not value:
            raise FieldError("must have at least 1 character, given 0")
        return Document(text=value)
    if not isinstance(value, dict):
        raise FieldError(f"must be a string or an object with text, given {given_value(value)}")
    return value


def _not_too_many(value: object) -> object:
    """Before any item is validated, because that takes time."""
    if isinstance(value, list) and len(value) > MAX_TEXTS:
        raise FieldError(f"must have at most {MAX_TEXTS} items, given {len(value)}")
    return value


class RerankRequest(Body):
    """Documents to sort by their similarity to a query."""

    model: str = MODEL
    query: str = Field(min_length=1)
    documents: Annotated[
        list[
            Annotated[Document, BeforeValidator(_document, json_schema_input_type=str | Document)]
        ],
        Field(min_length=1, max_length=MAX_TEXTS),
        BeforeValidator(_not_too_many),
    ] = Field(description="Up to 1000 texts, or objects with text.")
    top_n: int | None = Field(
        None, ge=0, description="Number of results, the best first; default, and 0: all."
    )
    return_documents: bool = Field(True, description="Return the text of each document, too.")

    truncate_prompt_tokens: TruncateTokens = TRUNCATE_TOKENS

    def pairs(self) -> TextPairs:
        """The query and the documents."""
        renamed = {"first_texts[0]": "query", "second_texts": "documents", "input": "documents"}
        return TextPairs(
            self.model,
            [self.query],
            [document.text for document in self.documents],
            FieldNames(RerankRequest.model_fields, {**LIMIT_NAMES, **renamed}),
            text_limit(self.truncate_prompt_tokens),
            is_search=True,
        )


class Texts(NamedTuple):
    """One text, or the texts of a list."""

    items: list[str]
    is_list: bool

    def paths(self, upstream: str, field: str) -> dict[str, str]:
        """The path in a body that has the texts in `field`, by the services' path."""
        return {upstream: field} if self.is_list else {f"{upstream}[0]": field}


def _texts(value: object) -> Texts:
    """One text or a list of texts. Raises FieldError."""
    given: list[Any] = value if isinstance(value, list) else [value]
    _not_too_many(given)
    if not given:
        raise FieldError("must have at least 1 item, given 0")
    for number, each in enumerate(given):
        path = (number,) if isinstance(value, list) else ()
        if not isinstance(each, str):
            kinds = "a string" if path else "a string or an array of strings"
            raise FieldError(f"must be {kinds}, given {given_value(each)}", *path)
        if not each:
            raise FieldError("must have at least 1 character, given 0", *path)
    return Texts(given, isinstance(value, list))


TextsField = Annotated[Texts, PlainValidator(_texts, json_schema_input_type=str | list[str])]


class ScoreRequest(Body):
    """Pairs of texts to compare."""

    model: str = MODEL
    text_1: TextsField = Field(description="A text, or a list of up to 1000.")
    text_2: TextsField = Field(
        description="A text or a list of up to 1000: one for each of text_1, or any number if "
        "text_1 is one text."
    )

    truncate_prompt_tokens: TruncateTokens = TRUNCATE_TOKENS

    @model_validator(mode="after")
    def _check(self) -> ScoreRequest:
        first, second = len(self.text_1.items), len(self.text_2.items)
        if first not in (1, second):
            raise FieldError(
                f"must have one item for each of text_1 ({first}), given {second}", "text_2"
            )
        return self

    def pairs(self) -> TextPairs:
        """One text and those to compare it with, or as many on both sides."""
        first, second = self.text_1, self.text_2
        renamed = {"input": "text_2", **first.paths("first_texts", "text_1")}
        renamed |= second.paths("second_texts", "text_2")
        return TextPairs(
            self.model,
            first.items,
            second.items,
            FieldNames(ScoreRequest.model_fields, {**LIMIT_NAMES, **renamed}),
            text_limit(self.truncate_prompt_tokens),
        )


class RerankResult(Answer):
    """A document and its similarity to the query."""

    index: int
    relevance_score: float
    document: Document


class RerankAnswer(Answer):
    """The documents, most similar first."""

    id: str
    model: str
    method: Method
    results: list[RerankResult]
    usage: EmbeddingUsage


class Score(Answer):
    """The similarity of one pair."""

    object: Literal["score"]
    index: int
    score: float


class ScoreAnswer(Answer):
    """The similarities, in the order of the pairs."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    method: Method
    data: list[Score]
    usage: EmbeddingUsage
