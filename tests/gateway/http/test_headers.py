"""A request's headers by name."""

from __future__ import annotations

from gateway.http.headers import headers_of


def test_the_first_of_a_name_counts() -> None:
    """As with Starlette's `Headers`, and no name is missing."""
    headers = [(b"host", b"a"), (b"x-request-id", b"1"), (b"x-request-id", b"2"), (b"x", b"\xe9")]
    scope = {"type": "http", "headers": headers}
    assert headers_of(scope) == {"host": "a", "x-request-id": "1", "x": "\xe9"}


def test_they_are_read_once() -> None:
    """Each part that asks gets the same."""
    scope = {"type": "http", "headers": [(b"host", b"a")]}
    assert headers_of(scope) is headers_of(scope)
