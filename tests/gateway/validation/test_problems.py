"""The `param` of an error and the value that its message quotes."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from mesh.errors import ErrorKind, MeshError
from tests.gateway.fakes import FakeOrchestrator, Script
from tests.gateway.validation.test_bad_input import CHAT, COMPLETION, USER, check, post

QUOTED_FIELD: list[tuple[str, Any, str, str]] = [
    (
        "messages",
        [{"role": "user", "content": [{"type": "FIELD"}]}],
        "messages[0].content[0].type",
        "must be 'text', given \"FIELD\"",
    ),
    (
        "tools",
        [{"type": "FIELD x"}],
        "tools[0].type",
        "must be 'function', given \"FIELD x\"",
    ),
    (
        "logit_bias",
        {"FIELD": 1},
        "logit_bias",
        'must have token ids as its keys, given "FIELD"',
    ),
]


@pytest.mark.parametrize(("field", "value", "param", "requirement"), QUOTED_FIELD)
async def test_a_quoted_value_is_never_rewritten(
    field: str, value: Any, param: str, requirement: str
) -> None:
    """An error message quotes the client's value unchanged, even the word FIELD."""
    response = await post(CHAT, {"messages": [USER], field: value})
    check(response, f"{param} {requirement}", param)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (COMPLETION, {"prompt": "x"}, "prompt"),
        (CHAT, {"messages": [USER]}, "messages"),
    ],
)
async def test_param_of_an_upstream_error_is_kept(
    client: httpx.AsyncClient,
    orchestrator: FakeOrchestrator,
    path: str,
    body: dict[str, Any],
    param: str,
) -> None:
    """`param` is the field that the orchestrator names, on every endpoint."""
    refusal = MeshError(ErrorKind.CONTEXT_TOO_LONG, f"{param} is too long", param=param)
    orchestrator.script = Script(refusal=refusal)
    check(await client.post(path, json=body), f"{param} is too long", param)
