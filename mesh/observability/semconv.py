"""Names of spans, events and attributes: OpenTelemetry's semantic conventions and Weir's own.

Conventions for HTTP, servers and errors are stable and are imported from OpenTelemetry's package.
Those for RPC and GenAI are repeated here, because the package has them in a private module only
(`tests/mesh/observability/test_semconv.py` compares them). Names without a convention begin with
`weir.`.
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
"""Version of the semantic conventions that the names follow."""

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
"""Name of the status: `OK`, `DEADLINE_EXCEEDED`."""
GRPC = "grpc"

GEN_AI_OPERATION_NAME = "gen_ai.operation.name"
GEN_AI_PROVIDER_NAME = "gen_ai.provider.name"
GEN_AI_REQUEST_MODEL = "gen_ai.request.model"
GEN_AI_REQUEST_CHOICE_COUNT = "gen_ai.request.choice.count"
GEN_AI_REQUEST_STREAM = "gen_ai.request.stream"
GEN_AI_REQUEST_MAX_TOKENS = "gen_ai.request.max_tokens"
GEN_AI_REQUEST_TEMPERATURE = "gen_ai.request.temperature"
GEN_AI_REQUEST_TOP_P = "gen_ai.request.top_p"
GEN_AI_REQUEST_TOP_K = "gen_ai.request.top_k"
GEN_AI_REQUEST_SEED = "gen_ai.request.seed"
GEN_AI_REQUEST_FREQUENCY_PENALTY = "gen_ai.request.frequency_penalty"
GEN_AI_REQUEST_PRESENCE_PENALTY = "gen_ai.request.presence_penalty"
GEN_AI_REQUEST_STOP_SEQUENCES = "gen_ai.request.stop_sequences"
GEN_AI_OUTPUT_TYPE = "gen_ai.output.type"
GEN_AI_RESPONSE_ID = "gen_ai.response.id"
GEN_AI_RESPONSE_MODEL = "gen_ai.response.model"
GEN_AI_RESPONSE_FINISH_REASONS = "gen_ai.response.finish_reasons"
GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"
"""Seconds from the start of the operation."""
GEN_AI_USAGE_INPUT_TOKENS = "gen_ai.usage.input_tokens"
GEN_AI_USAGE_OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS = "gen_ai.usage.cache_read.input_tokens"
GEN_AI_EMBEDDINGS_DIMENSION_COUNT = "gen_ai.embeddings.dimension.count"
GEN_AI_AGENT_NAME = "gen_ai.agent.name"
"""Name of a workflow, since version 0.1 of the GenAI conventions."""
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
    EMBEDDINGS = "embeddings"
    INVOKE_WORKFLOW = "invoke_workflow"
    """A search with its summary: a retrieval and a chat."""


SEARCH = "search"
"""Name of the only workflow."""


class OutputType(StrEnum):
    """Values of `gen_ai.output.type`."""

    TEXT = "text"
    JSON = "json"


OUTCOME = "weir.outcome"
REQUEST_ID = "weir.request.id"
FIRST_TOKEN = "weir.first_token"
"""Event: the service sent or received the first token of the request."""
CLIENT_DISCONNECTED = "weir.client_disconnected"
"""Event: the client closed its connection before its answer was complete."""
FAILOVER = "weir.failover"
"""Event: a replica was lost; another one continues from the tokens generated so far."""

OPERATION = "weir.operation"
"""Of a gateway's span: the operation on the model that the client requested."""
MODEL = "weir.model"
"""Of a gateway's span: the name of the served model; empty if none was chosen, so that a query for
any model finds it."""
TIME_TO_FIRST_TOKEN = "weir.time_to_first_token_seconds"
"""Of a gateway's span: as the metric `gen_ai_server_time_to_first_token_seconds`."""
CHOICE_INDEX = "weir.choice.index"
"""Number of the choice that a generation is, from 0, if the client requested several."""
NUM_FAILOVERS = "weir.num_failovers"
FAILOVER_CAUSES = "weir.failover.causes"
"""Kind and message of the error of each failover, in order."""
ERROR_MESSAGE = "weir.error.message"
HELD_SECONDS = "weir.held_text.seconds"
"""Time in which tokens arrived whose text could not be sent yet, as it may be part of a stop
string, a tool call or a character."""
HELD_PERIODS = "weir.held_text.num_periods"
TEXT_RELEASED = "weir.text_released"
"""Event: text was sent, or dropped, that had been held back."""
NUM_TOKENS = "weir.num_tokens"
NUM_PROMPT_TOKENS = "weir.num_prompt_tokens"
NUM_CACHED_TOKENS = "weir.num_cached_tokens"
NUM_INPUTS = "weir.num_inputs"
NUM_FITTING = "weir.retrieval.num_fitting"
"""Passages that the prompt has room for."""
NUM_RESULTS = "weir.retrieval.num_results"
RETRIEVAL_OUTCOME = "weir.retrieval.outcome"
RETRIEVAL_MODE = "weir.retrieval.mode"
"""`fused`: by words and by vectors; `text`: by words only, though vectors are configured."""
RETRIEVAL_PROBLEM = "weir.retrieval.problem"
"""Why a search did not use vectors or the reranker."""
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
"""Event at the end of a step that computed a chunk of the prompt."""
DURATION_SECONDS = "weir.duration_seconds"
STEP_NUMBER = "weir.step.number"
NUM_PREFILL_TOKENS = "weir.step.num_prefill_tokens"
NUM_DECODE_TOKENS = "weir.step.num_decode_tokens"
NUM_WAITING = "weir.step.num_waiting"
KV_CACHE_USAGE = "weir.step.kv_cache_usage"

# Span names without a convention.
ADMISSION = "admission"
ENCODE = "encode"
CHOOSE_REPLICA = "choose_replica"
GROUNDING = "grounding"
REWRITE = "rewrite"
RELATED = "related"
QUEUE = "queue"
PREFILL = "prefill"
DECODE = "decode"
COMPUTE = "compute"
"""From the first piece of an embedding call to its last."""
FIT_PASSAGES = "fit_passages"
"""The tokens of passages are counted, and those that the context has room for are chosen."""
ENGINE_STEP = "engine_step"


def signed(value: int | None) -> int | None:
    """A 64-bit value as an attribute may have it: OTLP's integers are signed, as OpenAI's seeds."""
    return value if value is None or value < 2**63 else value - 2**64


class Outcome(StrEnum):
    """How a span ended: `weir.outcome` of every span that belongs to a request."""

    OK = "ok"
    CANCELLED = "cancelled"
    """The caller cancelled, or its connection closed."""
    REFUSED = "refused"
    """Refused because of overload."""
    INVALID = "invalid"
    """The request was invalid."""
    DEADLINE = "deadline"
    FAILED_OVER = "failed_over"
    """Success after a failover to another replica."""
    FAILED = "failed"
