"""Parses a JSON body in bounded time.

A C parser holds the interpreter lock until its end, so that no other request of the process
continues meanwhile. The time depends on the number of values rather than on bytes: a megabyte of
text takes 1 ms, a megabyte of small objects or numbers 50 ms. Therefore values are counted first.
"""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from typing import NamedTuple, NoReturn

from pydantic_core import from_json

from mesh.errors import ErrorKind, MeshError

MAX_MEMBERS = 32_768
"""Limit for the members of all objects together: 11 ms. 2,048 messages with calls have 16,000."""

MAX_VALUES = 65_536
"""Limit for the items of all arrays and the members together."""

MAX_VALUES_WITH_IDS = 350_000
"""The same for a body that may have 300,000 token ids: 16 ms."""

MANY_VALUES = 20_000
"""From here on pydantic's parser is used, which takes a third of the time for numbers.

It describes errors less well, and refuses lone surrogates without the field's name.
"""


class Size(NamedTuple):
    """Numbers of values in a JSON text, or upper bounds of them."""

    members: int
    values: int
    """Members and items of arrays."""


def parse_json(body: bytes, max_values: int = MAX_VALUES) -> object:
    """The value of a JSON text in UTF-8. Raises MeshError (INVALID_REQUEST)."""
    # RFC 8259, section 8.1: a byte order mark may be ignored.
    text = body.removeprefix(BOM_UTF8)
    size = _size(text, max_values)
    if size.members > MAX_MEMBERS:
        raise _invalid(
            f"the objects of the body must have at most {MAX_MEMBERS} members together, "
            f"given {size.members}"
        )
    if size.values > max_values:
        raise _invalid(f"the body must have at most {max_values} values, given {size.values}")
    if size.values > MANY_VALUES:
        return _parse_many(text)
    return _parse(text)


def _size(text: bytes, max_values: int) -> Size:
    """Upper bounds if those are within the limits, else the exact numbers."""
    size = _count(text)
    if size.members <= MAX_MEMBERS and size.values <= max_values:
        return size
    return _count(_without_strings(text))


def _count(text: bytes) -> Size:
    members = text.count(b":")
    return Size(members, text.count(b",") + text.count(b"[") + text.count(b"{"))


def _without_strings(text: bytes) -> bytes:
    """Linear in time: after the escapes are removed, every quote begins or ends a string."""
    unescaped = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    return b"".join(unescaped.split(b'"')[::2])


def _parse(text: bytes) -> object:
    try:
        return _DECODER.decode(text.decode())
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


def _parse_many(text: bytes) -> object:
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise _invalid(f"the body must be valid JSON: {error}") from None


def _refuse_constant(name: str) -> NoReturn:
    raise _invalid(f"the body must be valid JSON, given {name}, which JSON does not have")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def _invalid(message: str) -> MeshError:
    return MeshError(ErrorKind.INVALID_REQUEST, message)
