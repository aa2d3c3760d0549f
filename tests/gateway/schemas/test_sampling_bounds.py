"""The chat API has all sampling parameters of SamplingParams, with the shared bounds."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from gateway.schemas.common import MAX_UINT32
from mesh.protocol.sampling_params import BOUNDS, SamplingParams
from tests.gateway.direct import direct_client

OTHER_NAMES = {"num_logprobs": "top_logprobs", "constraint": "response_format"}
"""Parameters that have OpenAI's names in the chat API."""

NOT_PUBLIC = {"stop_token_ids", "num_prompt_logprobs"}
"""Parameters that chat requests do not have."""


async def chat_properties() -> dict[str, Any]:
    """The fields of a chat request in /openapi.json."""
    async with direct_client() as client:
        document = (await client.get("/openapi.json")).json()
    properties: dict[str, Any] = document["components"]["schemas"]["ChatCompletionRequest"][
        "properties"
    ]
    return properties


async def test_every_parameter_is_public() -> None:
    """Each field of SamplingParams is a field of the chat API, under its own or OpenAI's name."""
    names = {field.name for field in dataclasses.fields(SamplingParams)} - NOT_PUBLIC
    assert {OTHER_NAMES.get(name, name) for name in names} <= set(await chat_properties())


@pytest.mark.parametrize("name", sorted(set(BOUNDS) - NOT_PUBLIC - {"logit_bias"}))
async def test_bounds_are_those_of_the_shared_table(name: str) -> None:
    """Minimum and maximum in /openapi.json; only top_k has one more value, -1 for all tokens."""
    field = (await chat_properties())[OTHER_NAMES.get(name, name)]
    limits = field.get("anyOf", [field])[0]
    bounds = BOUNDS[name]
    least = limits["exclusiveMinimum" if bounds.excludes_least else "minimum"]
    assert least == (-1 if name == "top_k" else bounds.least)
    assert limits["maximum"] == (MAX_UINT32 if bounds.greatest is None else bounds.greatest)
