"""Requests made from openapi.json, as many as are asked for, and what must hold of the answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings

MAX_TOKENS = 2
"""A made-up request may ask for thousands, which tells nothing more."""

LEFT_OUT = {"/metrics", "/livez", "/readyz"}


OFTEN_REFUSED = frozenset(
    "suffix best_of dimensions min_tokens logit_bias tool_choice top_logprobs tools "
    "response_format continue_final_message chat_template_kwargs".split()
)
"""Left out of three requests of four, so that those get further than the first check."""


class Asked(NamedTuple):
    """A request, ready to be sent."""

    method: str
    path: str
    query: dict[str, Any]
    body: bytes


Send = Callable[[Asked], int]
"""Sends a request and gives the status of its answer."""


def fuzz(document: dict[str, Any], send: Send, num_cases: int, seed_number: int) -> dict[str, int]:
    """Sends `num_cases` requests, spread over the operations; fails on the first 5xx.

    Gives how often each operation was called and, for bodies, how often it said 200.
    """
    schema = schemathesis.openapi.from_dict(document)
    operations = [
        each.ok()
        for each in schema.get_all_operations()
        if each.ok().path not in LEFT_OUT  # type: ignore[union-attr]
    ]
    counts: dict[str, int] = {}
    # Operations without any input have one request only; others make up for them.
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
        asked = _asked(case)
        status = send(asked)
        counts[label] += 1
        counts[f"{label} 200"] += status == 200
        assert status < 500, (status, asked)

    run()


def _asked(case: Any) -> Asked:
    body = b""
    if case.operation.body:
        value = case.body if not isinstance(case.body, schemathesis.core.NotSet) else None
        if isinstance(value, dict):
            steered = len(json.dumps(value)) % 4
            kept = {k: v for k, v in value.items() if not (steered and k in OFTEN_REFUSED)}
            # Made-up names are of no model.
            value = {**kept, **_short(value), **(_steered(value) if steered else {})}
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return Asked(case.method, case.formatted_path, dict(case.query or {}), body)


def _steered(body: dict[str, Any]) -> dict[str, Any]:
    """Values that lead further: made-up names are of no model, and made-up roles of no template."""
    steered: dict[str, Any] = {"model": ""}
    if isinstance(body.get("messages"), list):
        contents = [m.get("content") for m in body["messages"] if isinstance(m, dict)]
        texts = [text for text in contents if isinstance(text, str)] or ["Hi"]
        steered["messages"] = [{"role": "user", "content": text} for text in texts]
    return steered


def _short(body: dict[str, Any]) -> dict[str, Any]:
    """What keeps an answer short, where the request is not wrong in just that."""
    short: dict[str, Any] = {}
    for name in ("max_tokens", "max_completion_tokens"):
        given = body.get(name)
        if given is None or (isinstance(given, int) and given > MAX_TOKENS):
            short[name] = MAX_TOKENS
    if isinstance(body.get("n"), int) and body["n"] > 2:
        short["n"] = 2
    return short
