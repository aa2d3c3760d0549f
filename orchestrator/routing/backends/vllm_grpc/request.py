"""A generation as vLLM's request. Zero means "default" for some of its fields."""

from __future__ import annotations

from typing import Any, TypeVar

from smg_grpc_proto.generated import vllm_engine_pb2

from mesh.protocol.constraints import ConstraintForm, OutputConstraint
from mesh.protocol.sampling_params import MAX_LOGPROBS
from orchestrator.routing.backends.backend import GenerateCall
from orchestrator.routing.backends.vllm_grpc.model import SamplingDefaults

MAX_SEED = 2**31 - 1
"""Seeds have 31 bits in vLLM's contract, and -1 is none. Larger ones are folded."""

Value = TypeVar("Value", int, float)


def generate_request(call: GenerateCall, defaults: SamplingDefaults, request_id: str) -> Any:
    """The streamed request. The engine does not apply the model's `defaults` itself."""
    return vllm_engine_pb2.GenerateRequest(
        request_id=request_id,
        tokenized=vllm_engine_pb2.TokenizedInput(input_ids=call.token_ids),
        sampling_params=_sampling(call, defaults),
        stream=True,
    )


def num_requested_logprobs(wanted: int) -> int:
    """How many alternatives to ask for: vLLM counts the sampled token as one of them."""
    return min(wanted + 1, MAX_LOGPROBS) if wanted else 0


def engine_seed(seed: int, num_resumed: int) -> int:
    """The seed in vLLM's range. A resumed stream gets another one: with the same, its first
    tokens would be sampled with the random numbers of the stream's first tokens."""
    seed += num_resumed
    return seed if 0 <= seed <= MAX_SEED else seed % MAX_SEED


def lark_grammar(constraint: OutputConstraint) -> str:
    """The grammar with its schema rules, as llguidance reads them."""
    rules = [f"{rule.name}: %json {rule.json_schema}" for rule in constraint.schema_rules]
    return "\n".join([constraint.text, *rules])


def _sampling(call: GenerateCall, defaults: SamplingDefaults) -> Any:
    given, resumed = call.sampling, call.num_resumed_tokens
    message = vllm_engine_pb2.SamplingParams(
        top_p=_either(given.top_p, defaults.top_p, 1.0),
        top_k=_either(given.top_k, defaults.top_k, 0),
        min_p=_either(given.min_p, defaults.min_p, 0.0),
        repetition_penalty=_either(given.repetition_penalty, defaults.repetition_penalty, 1.0),
        presence_penalty=given.presence_penalty or 0.0,
        frequency_penalty=given.frequency_penalty or 0.0,
        temperature=_either(given.temperature, defaults.temperature, 1.0),
        min_tokens=max(0, given.min_tokens - resumed),
        stop_token_ids=sorted(given.stop_token_ids),
        # With a form, the engine would go on past its end.
        ignore_eos=given.ignore_eos and given.constraint is None,
        skip_special_tokens=True,
        n=1,
        logit_bias=given.logit_bias,
    )
    if given.max_tokens is not None:
        message.max_tokens = given.max_tokens - resumed
    if given.seed is not None:
        message.seed = engine_seed(given.seed, resumed)
    if given.num_logprobs is not None:
        message.logprobs = num_requested_logprobs(given.num_logprobs)
    if given.num_prompt_logprobs is not None and not resumed:  # they came before the first token
        message.prompt_logprobs = num_requested_logprobs(given.num_prompt_logprobs)
    if given.constraint is not None:
        _set_constraint(message, given.constraint)
    return message


def _set_constraint(message: Any, constraint: OutputConstraint) -> None:
    match constraint.form:
        case ConstraintForm.JSON_OBJECT:
            message.json_object = True
        case ConstraintForm.GRAMMAR:
            message.grammar = lark_grammar(constraint)
        case form:
            setattr(message, form, constraint.text)


def _either(given: Value | None, default: Value | None, neutral: Value) -> Value:
    if given is not None:
        return given
    return neutral if default is None else default
