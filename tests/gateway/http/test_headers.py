"""Lookup of request headers by name."""

from __future__ import annotations

from gateway.http.headers import headers_of


def test_the_first_header_of_a_name_is_used() -> None:
    """Of repeated headers the first is used, as in Starlette's `Headers`; values are Latin-1."""
    headers = [(b"host", b"a"), (b"x-request-id", b"1"), (b"x-request-id", b"2"), (b"x", b"\xe9")]
    scope = {"type": "http", "headers": headers}
    assert headers_of(scope) == {"host": "a", "x-request-id": "1", "x": "\xe9"}


def test_headers_are_parsed_once() -> None:
    """Later calls return the same object."""
    scope = {"type": "http", "headers": [(b"host", b"a")]}
    assert headers_of(scope) is headers_of(scope)
