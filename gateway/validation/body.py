"""Parses a request's body or query string into a pydantic model."""

from __future__ import annotations

import asyncio
import json
import re
from typing import NamedTuple, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from gateway.http.errors import ClientDisconnected, HttpError
from gateway.http.headers import headers_of
from gateway.observability.request_record import RequestRecord
from gateway.validation.ignored_fields import ignored_fields
from gateway.validation.problems import json_kind, path_of_surrogate, problem_of
from mesh.errors import ErrorKind, MeshError, invalid

BODY_TIMEOUT_SECONDS = 30.0
"""Time that a client has to send its body."""

_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")

Model = TypeVar("Model", bound=BaseModel)


async def read_json(request: Request, model: type[Model], max_bytes: int) -> Model:
    """Read and validate the body. Raises MeshError, HttpError (408, 413) or ClientDisconnected."""
    fields, problem = await read_object(request, max_bytes)
    if problem is not None:
        raise problem
    try:
        made = model.model_validate(fields, strict=True)
    except ValidationError as error:
        raise problem_of(error) from None
    RequestRecord.of(request.scope).ignored = ignored_fields(fields, made)
    return made


class Fields(NamedTuple):
    """An unvalidated JSON object without its null fields."""

    fields: dict[str, object]
    problem: MeshError | None
    """The problem of a string that is not valid Unicode, if there is one."""


async def read_object(request: Request, max_bytes: int) -> Fields:
    """Read the body without validating its fields. Raises as `read_json` does."""
    body = await _read(request, max_bytes)
    value = _parse(body)
    if not isinstance(value, dict):
        raise _invalid(f"the body must be a JSON object, given {json_kind(value)}")
    problem = None
    if _SURROGATE_ESCAPE.search(body):
        path = path_of_surrogate(value)
        if path is not None:
            problem = invalid(path, f"{path} must be Unicode text, given a lone surrogate")
    # OpenAI's clients send null for fields at their defaults.
    return Fields({key: field for key, field in value.items() if field is not None}, problem)


def read_query(request: Request, model: type[Model]) -> Model:
    """Parse and validate the query string. Raises MeshError."""
    try:
        return model.model_validate(dict(request.query_params))
    except ValidationError as error:
        raise problem_of(error) from None


async def _read(request: Request, max_bytes: int) -> bytes:
    declared = headers_of(request.scope).get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > max_bytes:
        _too_large(max_bytes, declared)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    _too_large(max_bytes, "more")
    except TimeoutError:
        message = f"the body must arrive within {BODY_TIMEOUT_SECONDS:g} seconds"
        raise HttpError(408, message, code="request_timeout") from None
    except ClientDisconnect:
        raise ClientDisconnected from None
    return bytes(body)


def _too_large(max_bytes: int, given: str) -> NoReturn:
    message = f"the body must be at most {max_bytes} bytes, given {given[:20]}"
    raise HttpError(413, message, code="request_too_large")


def _parse(body: bytes) -> object:
    try:
        return _DECODER.decode(body.decode())
    except UnicodeDecodeError as error:
        raise _invalid(f"the body must be UTF-8, byte {error.start} is not") from None
    except json.JSONDecodeError as error:
        where = f"at line {error.lineno} column {error.colno}"
        what = error.msg.removesuffix(" at")
        raise _invalid(f"the body must be valid JSON: {what} {where}") from None
    except RecursionError:
        raise _invalid("the body must be valid JSON, given one nested too deeply") from None
    except ValueError:  # an integer of thousands of digits
        raise _invalid("the body must be valid JSON, given a number that is too long") from None


def _refuse_constant(name: str) -> NoReturn:
    raise _invalid(f"the body must be valid JSON, given {name}, which JSON does not have")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def _invalid(message: str) -> MeshError:
    return MeshError(ErrorKind.INVALID_REQUEST, message)
