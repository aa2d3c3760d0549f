"""The headers of a request, read once: half a dozen parts of the gateway ask for one each."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.types import Scope

_KEY = "gateway.http.headers"


def headers_of(scope: Scope) -> Mapping[str, str]:
    """Values by name in lower case; the first one where a name comes more than once."""
    headers: dict[str, str] | None = scope.get(_KEY)
    if headers is None:
        # As HTTP/1.1 has them, RFC 9112: any byte is a character.
        given = ((name.decode("latin-1"), value) for name, value in reversed(scope["headers"]))
        headers = scope[_KEY] = {name: value.decode("latin-1") for name, value in given}
    return headers
