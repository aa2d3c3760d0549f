"""A generation as the body of vLLM's `/v1/completions`.

The server applies the model's own sampling parameters where the body gives none.
"""

from __future__ import annotations

from typing import Any

from mesh.protocol.constraints import ConstraintForm, OutputConstraint
from orchestrator.routing.backends.backend import GenerateCall
from orchestrator.routing.backends.vllm_grpc.request import lark_grammar, num_requested_logprobs

_SAME = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)
"""Parameters with the same name and meaning."""

MAX_SEED = 2**63 - 1


def generate_body(call: GenerateCall, model: str) -> dict[str, Any]:
    """The streamed request, for tokens as ids."""
    given, resumed = call.sampling, call.num_resumed_tokens
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(call.token_ids),
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
        "min_tokens": max(0, given.min_tokens - resumed),
        # With a form, the engine would go on past its end.
        "ignore_eos": given.ignore_eos and given.constraint is None,
        "stop_token_ids": sorted(given.stop_token_ids),
    }
    for name in _SAME:
        value = getattr(given, name)
        if value is not None:
            body[name] = value
    if given.max_tokens is not None:
        body["max_tokens"] = given.max_tokens - resumed
    if given.seed is not None:
        body["seed"] = (given.seed + resumed) & MAX_SEED
    if given.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in given.logit_bias.items()}
    if given.num_logprobs is not None:
        body["logprobs"] = num_requested_logprobs(given.num_logprobs)
        body["return_tokens_as_token_ids"] = True
    if given.constraint is not None:
        body["structured_outputs"] = _structured_outputs(given.constraint)
    return body


def prompt_logprobs_body(call: GenerateCall, model: str) -> dict[str, Any] | None:
    """The request for the log probabilities of the prompt, which a stream cannot have.

    None if none are requested, or they were sent before the resumed tokens.
    """
    wanted = call.sampling.num_prompt_logprobs
    if wanted is None or call.num_resumed_tokens:
        return None
    return {
        "model": model,
        "prompt": list(call.token_ids),
        "max_tokens": 1,
        "prompt_logprobs": num_requested_logprobs(wanted),
    }


def _structured_outputs(constraint: OutputConstraint) -> dict[str, Any]:
    match constraint.form:
        case ConstraintForm.JSON_SCHEMA:
            return {"json": constraint.text}
        case ConstraintForm.JSON_OBJECT:
            return {"json_object": True}
        case ConstraintForm.REGEX:
            return {"regex": constraint.text}
        case ConstraintForm.GRAMMAR:
            return {"grammar": lark_grammar(constraint)}
