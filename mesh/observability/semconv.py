"""The names in our traces: OpenTelemetry's conventions, and the few of our own.

They are written here and nowhere else. Conventions for HTTP, servers and errors are stable and
come from OpenTelemetry's package; those for RPC and GenAI are spelled out, because that package
holds them under a private name (`tests/mesh/observability/test_semconv.py` compares). What no
convention has a
name for begins with `weir.`.
"""

from __future__ import annotations

from enum import StrEnum

from opentelemetry.semconv.attributes import (
    client_attributes,
    error_attributes,
    http_attributes,
    network_attributes,
    server_attributes,
    service_attributes,
    url_attributes,
    user_agent_attributes,
)
from opentelemetry.semconv.schemas import Schemas

SCHEMA_URL = Schemas.V1_44_0.value
"""The version of the conventions that the names follow."""

SERVICE_NAME = service_attributes.SERVICE_NAME
SERVICE_NAMESPACE = service_attributes.SERVICE_NAMESPACE
SERVICE_VERSION = service_attributes.SERVICE_VERSION

ERROR_TYPE = error_attributes.ERROR_TYPE
CLIENT_ADDRESS = client_attributes.CLIENT_ADDRESS
SERVER_ADDRESS = server_attributes.SERVER_ADDRESS
SERVER_PORT = server_attributes.SERVER_PORT
NETWORK_PROTOCOL_VERSION = network_attributes.NETWORK_PROTOCOL_VERSION
HTTP_REQUEST_METHOD = http_attributes.HTTP_REQUEST_METHOD
HTTP_RESPONSE_STATUS_CODE = http_attributes.HTTP_RESPONSE_STATUS_CODE
HTTP_ROUTE = http_attributes.HTTP_ROUTE
URL_PATH = url_attributes.URL_PATH
URL_SCHEME = url_attributes.URL_SCHEME
USER_AGENT_ORIGINAL = user_agent_attributes.USER_AGENT_ORIGINAL

RPC_SYSTEM_NAME = "rpc.system.name"
RPC_METHOD = "rpc.method"
"""Fully qualified: `mesh.v1.InferenceService/Generate`."""
RPC_RESPONSE_STATUS_CODE = "rpc.response.status_code"
"""By its name: `OK`, `DEADLINE_EXCEEDED`."""
GRPC = "grpc"

GEN_AI_OPERATION_NAME = "gen_ai.operation.name"
GEN_AI_PROVIDER_NAME = "gen_ai.provider.name"
GEN_AI_REQUEST_MODEL = "gen_ai.request.model"
GEN_AI_REQUEST_STREAM = "gen_ai.request.stream"
GEN_AI_REQUEST_MAX_TOKENS = "gen_ai.request.max_tokens"
GEN_AI_REQUEST_TEMPERATURE = "gen_ai.request.temperature"
GEN_AI_REQUEST_TOP_P = "gen_ai.request.top_p"
GEN_AI_REQUEST_TOP_K = "gen_ai.request.top_k"
GEN_AI_REQUEST_SEED = "gen_ai.request.seed"
GEN_AI_REQUEST_FREQUENCY_PENALTY = "gen_ai.request.frequency_penalty"
GEN_AI_REQUEST_PRESENCE_PENALTY = "gen_ai.request.presence_penalty"
GEN_AI_REQUEST_STOP_SEQUENCES = "gen_ai.request.stop_sequences"
GEN_AI_RESPONSE_MODEL = "gen_ai.response.model"
GEN_AI_RESPONSE_FINISH_REASONS = "gen_ai.response.finish_reasons"
GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"
"""Seconds from the start of the operation."""
GEN_AI_USAGE_INPUT_TOKENS = "gen_ai.usage.input_tokens"
GEN_AI_USAGE_OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS = "gen_ai.usage.cache_read.input_tokens"
GEN_AI_INPUT_MESSAGES = "gen_ai.input.messages"
GEN_AI_OUTPUT_MESSAGES = "gen_ai.output.messages"
GEN_AI_RETRIEVAL_QUERY_TEXT = "gen_ai.retrieval.query.text"
GEN_AI_RETRIEVAL_DOCUMENTS = "gen_ai.retrieval.documents"

PROVIDER = "weir"


class Operation(StrEnum):
    """Values of `gen_ai.operation.name`."""

    CHAT = "chat"
    TEXT_COMPLETION = "text_completion"
    RETRIEVAL = "retrieval"


OUTCOME = "weir.outcome"
REQUEST_ID = "weir.request.id"
FIRST_TOKEN = "weir.first_token"
"""Event: the first token of the request passed here."""
CLIENT_DISCONNECTED = "weir.client_disconnected"
"""Event: the client closed its connection before its answer was complete."""
FAILOVER = "weir.failover"
"""Event: a replica was lost, and another one is sent what there is so far."""

NUM_FAILOVERS = "weir.num_failovers"
NUM_TOKENS = "weir.num_tokens"
NUM_RESULTS = "weir.retrieval.num_results"
RETRIEVAL_OUTCOME = "weir.retrieval.outcome"
ADMISSION_LIMIT = "weir.admission.limit"
NUM_ADMITTED = "weir.admission.num_admitted"
NUM_CANDIDATES = "weir.replica.num_candidates"
OUTSTANDING_TOKENS = "weir.replica.outstanding_tokens"
TOKENIZER_PREFIX = "weir.tokenizer."

NUM_PREEMPTIONS = "weir.num_preemptions"
MEAN_BATCH_SIZE = "weir.mean_batch_size"
BATCH_SIZE = "weir.batch_size"
NUM_STEPS = "weir.num_steps"
NUM_RESUMED_TOKENS = "weir.num_resumed_tokens"
PREFILL_CHUNK = "weir.prefill_chunk"
"""Event: a step that computed a piece of the prompt, at the step's end."""
DURATION_SECONDS = "weir.duration_seconds"
STEP_NUMBER = "weir.step.number"
NUM_PREFILL_TOKENS = "weir.step.num_prefill_tokens"
NUM_DECODE_TOKENS = "weir.step.num_decode_tokens"
NUM_WAITING = "weir.step.num_waiting"
KV_CACHE_USAGE = "weir.step.kv_cache_usage"

# The names of spans that no convention names.
ADMISSION = "admission"
ENCODE = "encode"
CHOOSE_REPLICA = "choose_replica"
GROUNDING = "grounding"
QUEUE = "queue"
PREFILL = "prefill"
DECODE = "decode"
ENGINE_STEP = "engine_step"


class Outcome(StrEnum):
    """How a span ended; every span of ours that works on a request has one as `weir.outcome`."""

    OK = "ok"
    CANCELLED = "cancelled"
    """Whoever asked went away."""
    REFUSED = "refused"
    """There was no room."""
    INVALID = "invalid"
    """The caller asked for what cannot be given."""
    DEADLINE = "deadline"
    FAILED_OVER = "failed_over"
    """It ended well, on another replica than it began on."""
    FAILED = "failed"
