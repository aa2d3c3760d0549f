"""A stream of tokens that outlives the replica it began on."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Sequence

from opentelemetry.trace import Span

from mesh.errors import ErrorKind, MeshError
from mesh.observability import semconv, tracing
from mesh.protocol.finish import FinishReason, GenerationFinish
from mesh.protocol.sampling_params import SamplingParams
from mesh.protocol.tokens import TokenChunk
from mesh.protocol.usage import Usage
from orchestrator.admission.request_table import ActiveRequest
from orchestrator.generation import ModelInfo
from orchestrator.observability import metrics
from orchestrator.routing.read_ahead import ReadAhead
from orchestrator.routing.replica import Replica
from orchestrator.routing.replicas import Lease, Replicas

logger = logging.getLogger("orchestrator.routing.failover")

MAX_LOST_REPLICAS = 2
"""A request under which this many replicas broke is likely what breaks them."""

# What another replica may cure. INTERNAL is a broken transport or a bug of that one engine;
# CANCELLED, where nobody here cancelled, is a server that was stopped.
_CURABLE = frozenset({ErrorKind.UNAVAILABLE, ErrorKind.INTERNAL, ErrorKind.CANCELLED})


class _Attempts:
    """What has been tried for one request: who was full, who was lost, and how often."""

    def __init__(self, replicas: Replicas, model: ModelInfo, prompt: Sequence[int]) -> None:
        self._replicas = replicas
        self._model = model
        self._prompt = prompt
        self._excluded: set[Replica] = set()
        self._lost: list[Replica] = []
        self._full: MeshError | None = None
        self._num_broken = 0

    async def next_replica(self, parent: Span) -> Replica:
        """Who is tried next. Raises MeshError if nobody is left."""
        with tracing.detached_stage(semconv.CHOOSE_REPLICA, parent=parent) as span:
            replica = await self._next_replica()
            if span.is_recording():
                span.set_attribute(semconv.NUM_CANDIDATES, len(self._replicas.ready))
                span.set_attribute(semconv.SERVER_ADDRESS, replica.address)
                span.set_attribute(semconv.OUTSTANDING_TOKENS, replica.outstanding_tokens)
            return replica

    async def _next_replica(self) -> Replica:
        try:
            return self._replicas.pick(self._model.name, self._prompt, self._excluded)
        except MeshError:
            if self._full is not None:
                raise self._full from None
            # The only one there is may have lost no more than a connection: if it says that it
            # serves, it gets one more try.
            for replica in dict.fromkeys(self._lost):
                if self._lost.count(replica) < MAX_LOST_REPLICAS and await replica.confirm():
                    return replica
            raise

    def failed(self, replica: Replica, error: MeshError, *, accepted: bool, so_far: int) -> None:
        """Notes a failure. Raises MeshError if no other replica should be tried."""
        self._excluded.add(replica)
        if error.kind is ErrorKind.OVERLOADED:
            self._full = error
            return
        if error.kind not in _CURABLE:
            raise error
        if error.kind is ErrorKind.UNAVAILABLE:
            replica.suspect()
        logger.warning(
            "replica lost under a request",
            extra={"address": replica.address, "num_tokens": so_far, "error": error.message},
        )
        self._lost.append(replica)
        if (accepted or error.kind is ErrorKind.INTERNAL) and replica.circuit.failure():
            logger.warning("replica ejected", extra={"address": replica.address})
        # One that refused, as it drains or cannot be reached, was not broken by this request.
        self._num_broken += accepted
        if self._num_broken >= MAX_LOST_REPLICAS:
            raise MeshError(
                ErrorKind.UNAVAILABLE,
                f"given up after {self._num_broken} engines were lost under this request",
                retry_after=1.0,
            ) from error
        metrics.FAILOVERS.inc()
        metrics.REPLAYED_TOKENS.inc(so_far)


async def generate(
    replicas: Replicas,
    model: ModelInfo,
    prompt: Sequence[int],
    sampling: SamplingParams,
    active: ActiveRequest,
) -> AsyncGenerator[TokenChunk, None]:
    """Chunks of tokens, the finish in the last one. The first of each replica may be empty.

    If a replica is lost, another one gets the prompt and the tokens so far and goes on; it counts
    those as output, so penalties, seeds and limits hold as if nothing had happened, and greedy
    output is the same. Raises MeshError once there is no replica left to try.
    """
    attempts = _Attempts(replicas, model, prompt)
    delivered: list[int] = []
    while True:
        replica = await attempts.next_replica(active.generation.span)
        accepted = False
        token_ids = [*prompt, *delivered]
        num_tokens = len(prompt) + (sampling.max_tokens or 0)
        try:
            with Lease(replica, num_tokens):
                async with (
                    replica.generate(
                        token_ids, sampling, len(delivered), active.generation.span
                    ) as tokens,
                    ReadAhead(tokens) as ahead,
                ):
                    with active.cancels(tokens.cancel):
                        async for chunk in ahead:
                            accepted = True
                            delivered += chunk.token_ids
                            if chunk.finish is not None:
                                replica.circuit.success()
                                yield chunk
                                return
                            yield chunk
            raise MeshError(ErrorKind.UNAVAILABLE, "the engine ended a stream without a finish")
        except MeshError as error:
            if active.cancelled:
                raise
            attempts.failed(replica, error, accepted=accepted, so_far=len(delivered))
            if error.kind is not ErrorKind.OVERLOADED:
                active.generation.failover(replica.address, error, len(delivered))
            reason = _ended(delivered, sampling, model)
            if reason is not None:
                # Only the finish was lost with the replica: nothing is left to generate.
                yield TokenChunk(
                    (), finish=GenerationFinish(reason, Usage(len(prompt), len(delivered)))
                )
                return


def _ended(
    delivered: Sequence[int], sampling: SamplingParams, model: ModelInfo
) -> FinishReason | None:
    if delivered and delivered[-1] in sampling.end_token_ids(model.eos_token_ids):
        return FinishReason.STOP
    if sampling.max_tokens is not None and len(delivered) >= sampling.max_tokens:
        return FinishReason.LENGTH
    return None
