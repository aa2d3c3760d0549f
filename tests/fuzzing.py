"""Generates random requests from openapi.json and checks that no response is a server error."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings

MAX_TOKENS = 2
"""Limit of generated tokens; a random request may ask for thousands, which tests nothing more."""

EXCLUDED_PATHS = {"/metrics", "/livez", "/readyz", "/health", "/rerank", "/v2/rerank", "/score"}
"""Probes, and further paths of an operation that is called by another one."""


OFTEN_INVALID = frozenset(
    "suffix best_of dimensions min_tokens logit_bias tool_choice top_logprobs tools "
    "response_format continue_final_message chat_template_kwargs".split()
)
"""Fields removed from three of four requests, so that those pass validation more often."""


TEXTS: dict[str, dict[str, Any]] = {
    "/v1/responses": {"input": "Hi"},
    "/v1/embeddings": {"input": ["Hi", "there"]},
    "/v1/score": {"text_1": "Hi", "text_2": ["Hi", "there"]},
}
"""Required fields of paths whose other fields are then reached."""


class FuzzRequest(NamedTuple):
    """A generated request."""

    method: str
    path: str
    query: dict[str, Any]
    body: bytes


Send = Callable[[FuzzRequest], int]
"""Sends a request and returns the status of its response."""


def fuzz(document: dict[str, Any], send: Send, num_cases: int, seed_number: int) -> dict[str, int]:
    """Sends `num_cases` requests, spread over the operations; fails at the first 5xx.

    Returns the number of calls of each operation, and the number of its responses with 200.
    """
    schema = schemathesis.openapi.from_dict(document)
    operations = [
        each.ok()
        for each in schema.get_all_operations()
        if each.ok().path not in EXCLUDED_PATHS  # type: ignore[union-attr]
    ]
    counts: dict[str, int] = {}
    # Operations without input have only one request; the others get their share.
    for number, operation in enumerate(sorted(operations, key=lambda each: bool(each.body))):
        sent = sum(count for label, count in counts.items() if not label.endswith(" 200"))
        share = -(-(num_cases - sent) // (len(operations) - number))
        _fuzz_operation(operation, send, share, seed_number, counts)
    return counts


def _fuzz_operation(
    operation: Any, send: Send, num_cases: int, seed_number: int, counts: dict[str, int]
) -> None:
    label = f"{operation.method.upper()} {operation.path}"
    counts[label] = counts[f"{label} 200"] = 0

    @seed(seed_number)
    @settings(
        max_examples=num_cases,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def run(case: Any) -> None:
        request = _request(case)
        status = send(request)
        counts[label] += 1
        counts[f"{label} 200"] += status == 200
        assert status < 500, (status, request)

    run()


def _request(case: Any) -> FuzzRequest:
    body = b""
    if case.operation.body:
        value = case.body if not isinstance(case.body, schemathesis.core.NotSet) else None
        if isinstance(value, dict):
            is_steered = len(json.dumps(value)) % 4
            kept = {k: v for k, v in value.items() if not (is_steered and k in OFTEN_INVALID)}
            # Values that pass validation replace random ones in three of four requests.
            value = {**kept, **_short(value), **(_steered(case.path, kept) if is_steered else {})}
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return FuzzRequest(case.method, case.formatted_path, dict(case.query or {}), body)


def _steered(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Valid values for the fields that are hardly ever valid at random, and whole numbers."""
    floats = {name: value for name, value in body.items() if isinstance(value, float)}
    steered: dict[str, Any] = {
        name: int(value) for name, value in floats.items() if value.is_integer()
    }
    steered |= {"model": "", **TEXTS.get(path, {})}
    if isinstance(body.get("messages"), list):
        contents = [m.get("content") for m in body["messages"] if isinstance(m, dict)]
        texts = [text for text in contents if isinstance(text, str)] or ["Hi"]
        steered["messages"] = [{"role": "user", "content": text} for text in texts]
    return steered


def _short(body: dict[str, Any]) -> dict[str, Any]:
    """Small values for the fields that limit the output, unless theirs are invalid."""
    short: dict[str, Any] = {}
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
        given = body.get(name)
        if given is None or (isinstance(given, int) and given > MAX_TOKENS):
            short[name] = MAX_TOKENS
    if isinstance(body.get("n"), int) and body["n"] > 2:
        short["n"] = 2
    return short
