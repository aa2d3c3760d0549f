"""A `GenerateRequest` as the engine's sampling parameters; refuses what the engine does not have.

Zero means the default where vLLM's servicer treats it so. The model's own sampling defaults do not
apply: the caller takes them from `GetModelInfo`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from smg_grpc_proto.generated import vllm_engine_pb2

from inference.sampling.sampling_params import SamplingParams
from mesh.errors import MeshError, invalid
from mesh.protocol.constraints import ConstraintForm, OutputConstraint
from mesh.protocol.sampling_params import BOUNDS, MAX_LOGPROBS, MAX_STOP_CHARACTERS

MAX_CHOICES = 128
MAX_STOP_STRINGS = 64

_PREFIX = "sampling_params."

_UNSUPPORTED: Mapping[str, str] = MappingProxyType(
    {
        "kv_transfer_params": "the transfer of KV blocks is not supported",
        "kv_transfer_params_json": "the transfer of KV blocks is not supported",
        "mm_inputs": "the model has no multimodal input",
        "extra_mm_inputs": "the model has no multimodal input",
        "media_refs": "the model has no multimodal input",
    }
)
"""Fields of the request that are refused, and why."""

_FORMS: Mapping[str, ConstraintForm] = MappingProxyType(
    {
        "json_schema": ConstraintForm.JSON_SCHEMA,
        "regex": ConstraintForm.REGEX,
        "grammar": ConstraintForm.GRAMMAR,
    }
)

_FIELD_OF: Mapping[str, str] = MappingProxyType(
    {
        "num_logprobs": f"{_PREFIX}logprobs",
        "num_prompt_logprobs": f"{_PREFIX}prompt_logprobs",
        "prompt": "tokenized.input_ids",
        "inputs[0]": "tokenized.input_ids",
        **{f"constraint.{form}": f"{_PREFIX}{form}" for form in ConstraintForm},
    }
)
"""Fields of the request by the engine's names, where they differ in more than the prefix."""


class StopRule(NamedTuple):
    """The stop strings of a request; they end no text within the first `min_tokens` tokens."""

    strings: tuple[str, ...]
    min_tokens: int
    skips_special_tokens: bool


def check_supported(request: vllm_engine_pb2.GenerateRequest) -> None:
    """Raises MeshError (INVALID_REQUEST) for a field that the engine does not support."""
    for each, value in request.ListFields():
        if each.name in _UNSUPPORTED:
            raise invalid(each.name, f"{each.name} must be absent: {_UNSUPPORTED[each.name]}")
        if each.name == "data_parallel_rank" and value != 0:
            raise invalid(each.name, f"data_parallel_rank must be 0, the only rank, given {value}")
    params = request.sampling_params
    if params.WhichOneof("constraint") == "structural_tag":
        name = f"{_PREFIX}structural_tag"
        raise invalid(name, f"{name} must be absent: structural tags are not supported")


def sampling_params(
    message: vllm_engine_pb2.SamplingParams, constraint: OutputConstraint | None
) -> SamplingParams:
    """The engine's parameters. Raises `InvalidSamplingParams`, or MeshError for a limit here."""
    return SamplingParams(
        max_tokens=message.max_tokens if message.HasField("max_tokens") else None,
        seed=message.seed if message.HasField("seed") else None,
        num_logprobs=_num_logprobs(message, "logprobs"),
        num_prompt_logprobs=_num_logprobs(message, "prompt_logprobs"),
        temperature=message.temperature if message.HasField("temperature") else 1.0,
        top_p=message.top_p or 1.0,
        top_k=message.top_k,
        min_p=message.min_p,
        frequency_penalty=message.frequency_penalty,
        presence_penalty=message.presence_penalty,
        repetition_penalty=message.repetition_penalty or 1.0,
        min_tokens=message.min_tokens,
        stop_token_ids=frozenset(message.stop_token_ids),
        ignore_eos=message.ignore_eos,
        logit_bias=dict(message.logit_bias),
        constraint=constraint,
    )


def output_constraint(message: vllm_engine_pb2.SamplingParams) -> OutputConstraint | None:
    """The form of the text; a choice is a regular expression. Raises MeshError."""
    name = message.WhichOneof("constraint")
    if name is None:
        return None
    if name == "choice":
        choices = message.choice.choices
        if not choices or not all(choices):
            field = f"{_PREFIX}choice"
            raise invalid(field, f"{field} must have at least 1 choice, and none that is empty")
        return OutputConstraint(ConstraintForm.REGEX, "|".join(map(re.escape, choices)))
    if name == "json_object":
        if not message.json_object:
            raise invalid(f"{_PREFIX}{name}", f"{_PREFIX}{name} must be true, given false")
        return OutputConstraint(ConstraintForm.JSON_OBJECT)
    return OutputConstraint(_FORMS[name], getattr(message, name))


def stop_rule(message: vllm_engine_pb2.SamplingParams) -> StopRule | None:
    """The stop strings, None if there are none. Raises MeshError."""
    field = f"{_PREFIX}stop"
    if len(message.stop) > MAX_STOP_STRINGS:
        given = len(message.stop)
        raise invalid(field, f"{field} must be at most {MAX_STOP_STRINGS} strings, given {given}")
    for each in message.stop:
        if not 1 <= len(each) <= MAX_STOP_CHARACTERS:
            limit = f"1 to {MAX_STOP_CHARACTERS} characters"
            raise invalid(field, f"{field} must be strings of {limit}, given {len(each)}")
    if not message.stop:
        return None
    return StopRule(tuple(message.stop), message.min_tokens, message.skip_special_tokens)


def num_choices(message: vllm_engine_pb2.SamplingParams) -> int:
    """The number of sequences. Raises MeshError."""
    if message.n > MAX_CHOICES:
        field = f"{_PREFIX}n"
        raise invalid(field, f"{field} must be at most {MAX_CHOICES}, given {message.n}")
    return max(1, int(message.n))


def truncated_prompt(
    message: vllm_engine_pb2.SamplingParams, token_ids: list[int], max_context: int
) -> list[int]:
    """The last `truncate_prompt_tokens` ids; -1: as many as leave room for a token. Raises."""
    if not message.HasField("truncate_prompt_tokens"):
        return token_ids
    most = message.truncate_prompt_tokens
    if most == -1:
        most = max_context - max(1, message.max_tokens)
    if not 1 <= most < max_context:
        field = f"{_PREFIX}truncate_prompt_tokens"
        limit = f"-1, or between 1 and {max_context - 1}"
        given = message.truncate_prompt_tokens
        raise invalid(field, f"{field} must be {limit}, given {given}")
    return token_ids[-most:]


def in_callers_words(error: MeshError, message: Any) -> MeshError:
    """The error with the request's name of the invalid field."""
    param = error.param
    if param is None or param.startswith(_PREFIX):
        return error
    if param == "constraint.regex" and message.WhichOneof("constraint") == "choice":
        return error.renamed(f"{_PREFIX}choice")
    if param in _FIELD_OF:
        return error.renamed(_FIELD_OF[param])
    if param in BOUNDS or param == "stop_token_ids":
        return error.renamed(f"{_PREFIX}{param}")
    return error


def _num_logprobs(message: vllm_engine_pb2.SamplingParams, name: str) -> int | None:
    if not message.HasField(name):
        return None
    given: int = getattr(message, name)
    if given < 0:  # vLLM's -1, the whole vocabulary
        field = f"{_PREFIX}{name}"
        raise invalid(field, f"{field} must be between 0 and {MAX_LOGPROBS}, given {given}")
    return given
