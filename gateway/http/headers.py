"""Request headers as a mapping, and the names of the response headers that the gateway adds."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.types import Scope

API_KEY = "x-api-key"
"""Request header with the API key, where there is no bearer token."""
REQUEST_ID = "x-request-id"
ANTHROPIC_REQUEST_ID = "request-id"
"""Anthropic's name of the same header, in responses of the Messages API."""
TRACE_ID = "x-trace-id"
TRACE_REQUEST = "x-weir-trace"
"""Request header: 1 records the request's trace, whatever the sampling."""
TRACE_SAMPLED = "x-trace-sampled"
"""Whether the trace is exported; absent while that is undecided, as a stream begins."""
IGNORED_FIELDS = "x-ignored-fields"
"""Lists the fields of the request body that the gateway does not know."""
TOOL_PROMPT = "x-tool-prompt"
"""How the request's tools are described to the model: `template` or `generic`."""
RETRY_AFTER = "retry-after"
INSTANCE_ID = "x-instance-id"
"""Name of the process, in responses to probes if it has one."""

RESPONSE_HEADERS = (
    REQUEST_ID,
    ANTHROPIC_REQUEST_ID,
    TRACE_ID,
    TRACE_SAMPLED,
    RETRY_AFTER,
    IGNORED_FIELDS,
    TOOL_PROMPT,
)
"""Response headers that the gateway adds; CORS exposes all of them to pages."""

_KEY = "gateway.http.headers"


def headers_of(scope: Scope) -> Mapping[str, str]:
    """Header values by lower-case name, decoded once per request.

    The first value is used if a name occurs more than once.
    """
    headers: dict[str, str] | None = scope.get(_KEY)
    if headers is None:
        # RFC 9112 allows any byte in a header value; Latin-1 decodes each to one character.
        given = ((name.decode("latin-1"), value) for name, value in reversed(scope["headers"]))
        headers = scope[_KEY] = {name: value.decode("latin-1") for name, value in given}
    return headers
