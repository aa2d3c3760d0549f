"""vLLM's messages, errors and addresses, where Weir's own engine never sends the like."""

from __future__ import annotations

from unittest.mock import Mock

import grpc
import pytest
from smg_grpc_proto.generated import vllm_engine_pb2

from mesh.errors import ErrorKind, MeshError
from mesh.protocol.constraints import ConstraintForm, OutputConstraint
from mesh.protocol.finish import FinishReason
from mesh.protocol.sampling_params import SamplingParams
from orchestrator.routing.backends.backend import GenerateCall
from orchestrator.routing.backends.target import EngineProtocol, EngineTarget, parse_target
from orchestrator.routing.backends.vllm_grpc.errors import by_status
from orchestrator.routing.backends.vllm_grpc.model import SamplingDefaults, read_files
from orchestrator.routing.backends.vllm_grpc.request import engine_seed, generate_request
from orchestrator.routing.backends.vllm_grpc.response import ResponseReader, given_up
from orchestrator.routing.backends.vllm_http.response import error_by_status
from orchestrator.routing.failures_alone import FailuresAlone, is_alone
from orchestrator.routing.replica import Replica

INVALID = grpc.StatusCode.INVALID_ARGUMENT
REGEX = OutputConstraint(ConstraintForm.REGEX, "(")


@pytest.mark.parametrize(
    ("code", "details", "kind", "param"),
    [
        (
            INVALID,
            "The decoder prompt (length 1100) is longer than the maximum model length of 1024.",
            ErrorKind.CONTEXT_TOO_LONG,
            "prompt",
        ),
        (
            INVALID,
            "token_id(s) [9] in stop_token_ids contain out-of-vocab token ids. "
            "(parameter=stop_token_ids, value=[9])",
            ErrorKind.INVALID_REQUEST,
            "stop_token_ids",
        ),
        (
            INVALID,
            "Requested sample logprobs of 50 (parameter=logprobs, value=50)",
            ErrorKind.INVALID_REQUEST,
            "num_logprobs",
        ),
        (INVALID, "min_p must be in [0, 1], got 2.0.", ErrorKind.INVALID_REQUEST, "min_p"),
        (INVALID, 'Grammar error: invalid regex "("', ErrorKind.INVALID_REQUEST, REGEX.field),
        (INVALID, "Token id 9 is out of vocabulary", ErrorKind.INVALID_REQUEST, "prompt"),
        (
            grpc.StatusCode.UNAVAILABLE,
            "The engine is currently busy",
            ErrorKind.OVERLOADED,
            None,
        ),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "queue", ErrorKind.OVERLOADED, None),
        (
            grpc.StatusCode.INTERNAL,
            "EngineCore encountered an issue. See stack trace (above) for the root cause.",
            ErrorKind.UNAVAILABLE,
            None,
        ),
        (grpc.StatusCode.INTERNAL, "division by zero", ErrorKind.INTERNAL, None),
    ],
)
def test_errors_by_status_and_text(
    code: grpc.StatusCode, details: str, kind: ErrorKind, param: str | None
) -> None:
    """The texts are vLLM 0.32's. Only a failure of the request alone is not the engine's."""
    error = by_status(code, details, REGEX, "prompt")
    assert error is not None
    assert (error.kind, error.param) == (kind, param)
    assert "(parameter=" not in error.message
    assert error.message.count(param or "") >= 1
    assert (error.retry_after is not None) == (kind is ErrorKind.OVERLOADED)


def test_errors_of_grpc_itself_are_left_to_grpc() -> None:
    """A lost connection's message has addresses, and a large message is no full queue."""
    details = "failed to connect to all addresses; last error: ipv4:10.0.0.1:50051"
    assert by_status(grpc.StatusCode.UNAVAILABLE, details, None, "prompt") is None
    details = "CLIENT: Received message larger than max (70000000 vs. 67108864)"
    assert by_status(grpc.StatusCode.RESOURCE_EXHAUSTED, details, None, "prompt") is None


@pytest.mark.parametrize(
    "error",
    [
        by_status(grpc.StatusCode.INTERNAL, "division by zero", None, "prompt"),
        given_up("error"),
        error_by_status(500, "division by zero", None, None),
    ],
)
def test_two_engines_that_fail_do_not_blame_the_request(error: MeshError) -> None:
    """vLLM does not say what has failed, so the failures may have different causes."""
    assert is_alone(error)
    alone, engines = FailuresAlone(), [Mock(spec=Replica, address=name) for name in "ab"]
    alone.add(engines[0], error)
    with pytest.raises(MeshError) as caught:
        alone.add(engines[1], error)
    assert caught.value.kind is ErrorKind.INTERNAL


def test_the_last_delta_is_not_appended_twice() -> None:
    """`complete` repeats it; counts are added up; an engine without chunks sends all at once."""
    call = GenerateCall([1, 2, 3, 4], SamplingParams(num_logprobs=1), num_resumed_tokens=1)
    chunk = vllm_engine_pb2.GenerateStreamChunk
    complete = vllm_engine_pb2.GenerateComplete(
        output_ids=[7], finish_reason="stop", completion_tokens=1, cached_tokens=16
    )
    end = vllm_engine_pb2.GenerateResponse(complete=complete)
    reader = ResponseReader(call)
    for token_id in (6, 7):
        read = reader.read(vllm_engine_pb2.GenerateResponse(chunk=chunk(token_ids=[token_id])))
        assert list(read.token_ids) == [token_id]
    last = reader.read(end)
    assert last.token_ids == ()
    assert last.finish is not None
    assert last.finish.reason is FinishReason.STOP
    assert last.finish.usage == (3, 3, 3)  # cached tokens beyond the prompt are resumed ones
    whole = ResponseReader(call).read(end)
    assert list(whole.token_ids) == [7]
    assert whole.finish is not None
    assert whole.finish.usage.completion_tokens == 2


@pytest.mark.parametrize(
    ("reason", "kind"),
    [("abort", ErrorKind.UNAVAILABLE), ("error", ErrorKind.INTERNAL), ("", ErrorKind.INTERNAL)],
)
def test_a_request_that_the_engine_gives_up_continues_elsewhere(
    reason: str, kind: ErrorKind
) -> None:
    """A drain ends streams with the reason abort."""
    complete = vllm_engine_pb2.GenerateComplete(finish_reason=reason)
    reader = ResponseReader(GenerateCall([1], SamplingParams()))
    with pytest.raises(MeshError) as caught:
        reader.read(vllm_engine_pb2.GenerateResponse(complete=complete))
    assert caught.value.kind is kind


def test_a_response_that_cannot_be_read_continues_elsewhere() -> None:
    """Such as one with fewer log probabilities than tokens."""
    logprobs = vllm_engine_pb2.OutputLogProbs(token_ids=[1, 2], token_logprobs=[-1.0])
    chunk = vllm_engine_pb2.GenerateStreamChunk(token_ids=[1, 2], output_logprobs=logprobs)
    reader = ResponseReader(GenerateCall([1], SamplingParams(num_logprobs=0)))
    with pytest.raises(MeshError, match="cannot be read") as caught:
        reader.read(vllm_engine_pb2.GenerateResponse(chunk=chunk))
    assert is_alone(caught.value)


def test_log_probabilities_are_sorted_and_the_first_prompt_token_has_none() -> None:
    """vLLM sends the sampled token first, and an empty entry for the prompt's first token."""
    tops = vllm_engine_pb2.TopLogProbs(token_ids=[9, 5, 6], values=[-3.0, -1.0, -2.0])
    inputs = vllm_engine_pb2.InputLogProbs(
        token_ids=[1, 2],
        token_logprobs=[{}, {"value": -0.5}],
        top_logprobs=[vllm_engine_pb2.TopLogProbs(), tops],
    )
    outputs = vllm_engine_pb2.OutputLogProbs(
        token_ids=[9], token_logprobs=[-3.0], top_logprobs=[tops]
    )
    chunk = vllm_engine_pb2.GenerateStreamChunk(
        token_ids=[9], output_logprobs=outputs, input_logprobs=inputs
    )
    sampling = SamplingParams(num_logprobs=2, num_prompt_logprobs=1)
    reader = ResponseReader(GenerateCall([1, 2], sampling))
    read = reader.read(vllm_engine_pb2.GenerateResponse(chunk=chunk))
    assert read.logprobs == [(9, -3.0, ((5, -1.0), (6, -2.0)))]
    assert read.prompt_logprobs == [(2, -0.5, ((5, -1.0),))]


def test_the_models_defaults_apply_where_the_client_gives_nothing() -> None:
    """vLLM's server does not apply them, and takes 0 as the default of some fields."""
    text = '{"temperature":0.6,"top_p":0.9,"top_k":20,"min_p":7,"repetition_penalty":"x"}'
    defaults = SamplingDefaults.parse(text)
    assert defaults == (0.6, 0.9, 20, None, None)
    call = GenerateCall([1], SamplingParams(top_k=0, temperature=0.0))
    sampling = generate_request(call, defaults, "id").sampling_params
    assert sampling.HasField("temperature")
    assert (sampling.temperature, sampling.top_k) == (0.0, 0)
    assert sampling.top_p == pytest.approx(0.9)
    assert sampling.repetition_penalty == 1.0
    assert SamplingDefaults.parse("[") == SamplingDefaults.parse("") == SamplingDefaults()


def test_limits_count_from_the_end_of_the_prompt() -> None:
    """Resumed tokens reduce them, and are not sampled with the first tokens' random numbers."""
    params = SamplingParams(
        max_tokens=10, min_tokens=2, seed=5, num_logprobs=20, num_prompt_logprobs=2
    )
    first = generate_request(GenerateCall([1, 2, 3], params), SamplingDefaults(), "id")
    later = generate_request(GenerateCall([1, 2, 3, 4], params, 3), SamplingDefaults(), "id")
    assert (first.sampling_params.max_tokens, later.sampling_params.max_tokens) == (10, 7)
    assert (first.sampling_params.min_tokens, later.sampling_params.min_tokens) == (2, 0)
    assert (first.sampling_params.seed, later.sampling_params.seed) == (5, 8)
    assert first.sampling_params.logprobs == 20
    assert first.sampling_params.prompt_logprobs == 3
    assert not later.sampling_params.HasField("prompt_logprobs")


@pytest.mark.parametrize("seed", [0, 2**31 - 1, 2**31, 2**64 - 1, -1])
def test_every_seed_is_in_vllms_range(seed: int) -> None:
    """31 bits; -1 would be no seed at all."""
    assert 0 <= engine_seed(seed, 0) < 2**31
    assert 0 <= engine_seed(seed, 1000) < 2**31


def test_end_tokens_of_both_configurations() -> None:
    """vLLM reports those of config.json only."""
    files = {
        "config.json": b'{"eos_token_id": 1}',
        "generation_config.json": b'{"eos_token_id": [1, 7, "x", -2]}',
        "tokenizer.json": b"{",
    }
    assert read_files(files) == ("", frozenset({1, 7}))


def test_addresses() -> None:
    """A scheme fixes the protocol, and has a default port."""
    vllm = EngineProtocol.VLLM_GRPC
    assert parse_target("a") == EngineTarget("a:50053", None)
    assert parse_target("[::1]:7") == EngineTarget("[::1]:7", None)
    assert parse_target("weir://a:7") == EngineTarget("a:7", EngineProtocol.WEIR)
    assert parse_target("vllm+grpc://a") == EngineTarget("a:50051", vllm)
    assert parse_target("vllm+grpc://[::1]:7").host == "::1"
    for bad in ("http://a:7", "vllm+grpc://", "vllm+grpc://a:7/v1"):
        with pytest.raises(ValueError, match="engine's address"):
            parse_target(bad)
