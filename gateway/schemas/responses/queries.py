"""The query strings of `GET /v1/responses/{id}` and of its input items."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from gateway.schemas.common import Body
from gateway.schemas.responses.items import IGNORED, MAX_ID_CHARACTERS
from gateway.validation.field_error import FieldError

MAX_PAGE = 100
DEFAULT_PAGE = 20

LISTS = ("include",)
"""Fields that may be repeated."""


class RetrieveQuery(Body):
    """How a stored response is returned."""

    stream: bool = Field(
        False,
        description="Stream the events of a response that was created with background and stream.",
    )
    starting_after: int | None = Field(
        default=None, ge=0, description="Number of the last event that the client has."
    )
    include: list[str] = Field(
        [],
        max_length=20,
        description="web_search_call.action.sources and file_search_call.results add those "
        "fields; others are ignored.",
    )
    include_obfuscation: bool | None = Field(default=None, description=IGNORED)

    @model_validator(mode="after")
    def _check(self) -> RetrieveQuery:
        if self.starting_after is not None and not self.stream:
            raise FieldError("must be true where starting_after is given, given false", "stream")
        return self

    @property
    def begin(self) -> int:
        """Number of the first event to return."""
        return 0 if self.starting_after is None else self.starting_after + 1


class InputItemsQuery(Body):
    """A page of the input items."""

    after: str | None = Field(
        default=None,
        max_length=MAX_ID_CHARACTERS,
        description="Id of the item before the page, in its order.",
    )
    limit: int = Field(DEFAULT_PAGE, ge=1, le=MAX_PAGE, description="Most items of the page.")
    order: Literal["asc", "desc"] = Field("desc", description="desc: the newest item is first.")
    include: list[str] = Field(
        [],
        max_length=20,
        description="message.output_text.logprobs, web_search_call.action.sources and "
        "file_search_call.results add those fields; others are ignored.",
    )
