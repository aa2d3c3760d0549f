"""Parses a request's body or query string into a pydantic model."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, NoReturn, TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from gateway.connection.limits import MIN_BYTES_PER_SECOND
from gateway.http.errors import ClientDisconnected, HttpError
from gateway.http.headers import headers_of
from gateway.observability.request_record import RequestRecord
from gateway.validation.ignored_fields import ignored_fields
from gateway.validation.json_body import MAX_VALUES, parse_json
from gateway.validation.problems import (
    MAX_GIVEN_CHARACTERS,
    json_kind,
    path_of_surrogate,
    problem_of,
)
from mesh.errors import ErrorKind, MeshError, invalid

BODY_GRACE_SECONDS = 30.0
"""Time after which a client must have sent its body at the minimum rate."""

QUERY = {"source": "query"}
"""Validation context of a query string, in which an array is JSON text."""

_UNCODED = ("", "identity")
_CLOSE = {"connection": "close"}
"""For a request whose body is not read to its end."""

LARGE_BODY_BYTES = 32 * 1024
"""Larger bodies are parsed and validated in a thread."""

_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")

Model = TypeVar("Model", bound=BaseModel)
T = TypeVar("T")


class Parsed(NamedTuple, Generic[Model]):
    """A validated body."""

    value: Model
    ignored: list[str]
    """Paths of its unknown fields."""


async def read_json(
    request: Request, model: type[Model], max_bytes: int, max_values: int = MAX_VALUES
) -> Model:
    """Read and validate the body.

    Raises MeshError, HttpError (408, 413, 415) or ClientDisconnected.
    """
    _check_coding(request)
    body = await _read(request, max_bytes)
    parsed = await off_loop(len(body), lambda: _validated(body, model, max_values))
    record = RequestRecord.of(request.scope)
    record.ignored = parsed.ignored
    record.body_bytes = len(body)
    return parsed.value


async def off_loop(num_bytes: int, function: Callable[[], T]) -> T:
    """Call `function`, whose time grows with the body's size; in a thread if the body is large.

    Other requests continue meanwhile: a megabyte of JSON takes tens of milliseconds.
    """
    if num_bytes <= LARGE_BODY_BYTES:
        return function()
    return await asyncio.to_thread(function)


class Fields(NamedTuple):
    """An unvalidated JSON object without its null fields."""

    fields: dict[str, object]
    problem: MeshError | None
    """The problem of a string that is not valid Unicode, if there is one."""


async def read_object(request: Request, max_bytes: int) -> Fields:
    """Read the body without validating its fields. Raises as `read_json` does."""
    _check_coding(request)
    body = await _read(request, max_bytes)
    return await off_loop(len(body), lambda: _object(body))


def _validated(body: bytes, model: type[Model], max_values: int) -> Parsed[Model]:
    fields, problem = _object(body, max_values)
    if problem is not None:
        raise problem
    try:
        made = model.model_validate(fields, strict=True)
    except ValidationError as error:
        raise problem_of(error) from None
    return Parsed(made, ignored_fields(fields, made))


def _object(body: bytes, max_values: int = MAX_VALUES) -> Fields:
    value = parse_json(body, max_values)
    if not isinstance(value, dict):
        raise _invalid(f"the body must be a JSON object, given {json_kind(value)}")
    problem = None
    if _SURROGATE_ESCAPE.search(body):
        path = path_of_surrogate(value)
        if path is not None:
            problem = invalid(path, f"{path} must be Unicode text, given a lone surrogate")
    # OpenAI's clients send null for fields at their defaults.
    return Fields({key: field for key, field in value.items() if field is not None}, problem)


def read_query(request: Request, model: type[Model], lists: Sequence[str] = ()) -> Model:
    """Parse and validate the query string. Raises MeshError.

    `lists`: fields that may be repeated, also with `[]` after their name.
    """
    query: bytes = request.scope["query_string"]
    try:
        fields = parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict")
    except UnicodeDecodeError:
        raise _invalid("the query string must be percent-encoded UTF-8") from None
    values: dict[str, object] = dict(fields)
    for name in lists:
        values[name] = [value for key, value in fields if key in (name, f"{name}[]")]
        values.pop(f"{name}[]", None)
    try:
        made = model.model_validate(values, context=QUERY)
    except ValidationError as error:
        raise problem_of(error) from None
    RequestRecord.of(request.scope).ignored = ignored_fields(values, made)
    return made


async def _read(request: Request, max_bytes: int) -> bytes:
    declared = headers_of(request.scope).get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > max_bytes:
        _too_large(max_bytes, declared)
    body = bytearray()
    latest = asyncio.get_running_loop().time() + BODY_GRACE_SECONDS
    try:
        async with asyncio.timeout_at(latest) as timeout:
            # Not `request.stream`: most bodies are in the first message.
            while (message := await request.receive())["type"] != "http.disconnect":
                body += message.get("body", b"")
                if len(body) > max_bytes:
                    _too_large(max_bytes, "more")
                if not message.get("more_body", False):
                    return bytes(body)
                timeout.reschedule(latest + len(body) / MIN_BYTES_PER_SECOND)
    except TimeoutError:
        problem = (
            f"the body must arrive within {BODY_GRACE_SECONDS:g} seconds and one more for each "
            f"{MIN_BYTES_PER_SECOND} bytes, given {len(body)} bytes until then"
        )
        raise HttpError(408, problem, code="request_timeout", headers=_CLOSE) from None
    raise ClientDisconnected


def _check_coding(request: Request) -> None:
    coding = headers_of(request.scope).get("content-encoding", "").strip().lower()
    if coding not in _UNCODED:
        message = f"Content-Encoding must be identity, given {coding[:MAX_GIVEN_CHARACTERS]!r}"
        # RFC 9110, section 12.5.3: in a response it lists the accepted codings.
        accepted = {"accept-encoding": "identity"}
        raise HttpError(415, message, code="unsupported_media_type", headers=accepted)


def _too_large(max_bytes: int, given: str) -> NoReturn:
    message = f"the body must be at most {max_bytes} bytes, given {given[:20]}"
    raise HttpError(413, message, code="request_too_large", headers=_CLOSE)


def _invalid(message: str) -> MeshError:
    return MeshError(ErrorKind.INVALID_REQUEST, message)
