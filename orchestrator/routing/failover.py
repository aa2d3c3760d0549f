"""Generates on one replica, and continues on another if that one is lost."""

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
from orchestrator.admission.request_table import ActiveRequest, RequestAborted
from orchestrator.generation import ModelInfo
from orchestrator.observability import metrics
from orchestrator.routing.backends.backend import GenerateCall
from orchestrator.routing.direct_path import NO_PATH, DirectPath
from orchestrator.routing.failures_alone import FailuresAlone, is_alone
from orchestrator.routing.read_ahead import read_ahead
from orchestrator.routing.replica import Replica
from orchestrator.routing.replicas import Lease, Replicas

logger = logging.getLogger("orchestrator.routing.failover")

MAX_LOST_REPLICAS = 2
"""A request that loses this many replicas is given up: it probably causes their failures."""

# Errors after which another replica may succeed. INTERNAL that the engine reports is a failure of
# this request alone (see `is_alone`), otherwise a broken transport; CANCELLED without a
# cancellation here means that the server was stopped.
_RETRIABLE = frozenset({ErrorKind.UNAVAILABLE, ErrorKind.INTERNAL, ErrorKind.CANCELLED})


class _Attempts:
    """The replicas tried for one request: which were full, which were lost, and how often."""

    def __init__(
        self,
        replicas: Replicas,
        model: ModelInfo,
        prompt: Sequence[int],
        active: ActiveRequest,
        *,
        has_form: bool,
    ) -> None:
        """`has_form`: the output has a constraint."""
        self._has_form = has_form
        self._resumes = False
        """Whether the next replica continues after tokens of another one."""
        self._replicas = replicas
        self._model = model
        self._prompt = prompt
        self._active = active
        self._excluded: set[Replica] = set()
        self._lost: list[Replica] = []
        self._full: MeshError | None = None
        self._num_broken = 0
        self._alone = FailuresAlone()

    async def next_replica(self, parent: Span) -> Replica:
        """The replica to try next. Raises MeshError if there is none."""
        with tracing.detached_stage(semconv.CHOOSE_REPLICA, parent=parent) as span:
            replica = await self._next_replica()
            if span.is_recording():
                span.set_attribute(semconv.NUM_CANDIDATES, len(self._replicas.ready))
                server = tracing.address_attributes(replica.address)
                span.set_attributes(server)
                parent.set_attributes(server)
                span.set_attribute(semconv.OUTSTANDING_TOKENS, replica.outstanding_tokens)
            return replica

    async def _next_replica(self) -> Replica:
        while True:
            try:
                return self._replicas.pick(
                    self._model, self._prompt, self._excluded | self._unfit()
                )
            except MeshError:
                if self._alone.first is not None:
                    raise self._alone.first from None
                if self._full is not None:
                    raise self._full from None
                # A lost replica may have lost only its connection: try it once more if its health
                # check succeeds.
                for replica in dict.fromkeys(self._lost):
                    again = self._may_retry(replica) and await replica.confirm()
                    # It may have restarted with another model.
                    if again and self._is_fit(replica):
                        return replica
                # In a rollout another one may be ready in a moment.
                async with self._active.cancellable():
                    if not await self._replicas.wait_ready(self._model.name, self._has_candidate):
                        raise

    def _may_retry(self, replica: Replica) -> bool:
        return self._lost.count(replica) < MAX_LOST_REPLICAS

    def _has_candidate(self) -> bool:
        fit = [each for each in self._replicas.ready if self._is_fit(each)]
        return any(
            replica not in self._excluded or (replica in self._lost and self._may_retry(replica))
            for replica in fit
        )

    def _is_fit(self, replica: Replica) -> bool:
        return replica not in self._unfit() and replica.serves(self._model)

    def _unfit(self) -> set[Replica]:
        """Replicas at which the output's form would begin again, after the resumed tokens."""
        if not (self._has_form and self._resumes):
            return set()
        return {each for each in self._replicas.ready if not each.resumes_constraints}

    def failed(
        self, replica: Replica, error: MeshError, delivered: Sequence[int], *, accepted: bool
    ) -> None:
        """Records a failure after the tokens `delivered`. Raises MeshError if it is final."""
        if self._active.cancelled:
            raise RequestAborted if error.kind is ErrorKind.CANCELLED else error
        self._excluded.add(replica)
        self._resumes = bool(delivered)
        if error.kind is ErrorKind.OVERLOADED:
            self._full = error
            return
        if error.kind not in _RETRIABLE:
            raise error
        if is_alone(error):
            self._alone.add(replica, error)
            self._record(replica, error, delivered)
            return
        if error.kind is ErrorKind.UNAVAILABLE:
            replica.suspect()
        logger.warning(
            "replica lost during a request",
            extra={
                "address": replica.address,
                "num_tokens": len(delivered),
                "error": error.message,
            },
        )
        self._lost.append(replica)
        if (accepted or error.kind is ErrorKind.INTERNAL) and replica.circuit.failure():
            logger.warning("circuit breaker opened", extra={"address": replica.address})
        # A replica that did not accept the request (draining, unreachable) was not broken by it.
        self._num_broken += accepted
        if self._num_broken >= MAX_LOST_REPLICAS:
            raise MeshError(
                ErrorKind.UNAVAILABLE,
                f"given up after {self._num_broken} engines were lost while they ran this request",
                retry_after=1.0,
            ) from error
        self._record(replica, error, delivered)

    def succeeded(self, replica: Replica, delivered: Sequence[int]) -> None:
        """Records that a replica has finished the request with these tokens."""
        self._replicas.computed(replica, self._model, self._prompt, delivered)
        replica.circuit.success()
        self._alone.blame()

    def _record(self, replica: Replica, error: MeshError, delivered: Sequence[int]) -> None:
        metrics.FAILOVERS.inc()
        metrics.REPLAYED_TOKENS.inc(len(delivered))
        self._active.account.failover(replica.address, error, len(delivered))


async def generate(
    replicas: Replicas,
    model: ModelInfo,
    prompt: Sequence[int],
    sampling: SamplingParams,
    active: ActiveRequest,
    direct: DirectPath = NO_PATH,
) -> AsyncGenerator[TokenChunk, None]:
    """Chunks of tokens; the last one has the finish. The first of each replica may be empty.

    `direct` takes chunks past the reader.

    If a replica is lost, another one of an equal model continues from the prompt and the tokens so
    far, with the same penalties, seeds and limits, so greedy output is identical. Raises MeshError
    if none is left.
    """
    attempts = _Attempts(replicas, model, prompt, active, has_form=sampling.constraint is not None)
    span = active.account.generation.span
    delivered: list[int] = []
    while True:
        replica = await attempts.next_replica(span)
        accepted = False
        lease = Lease(replica, len(prompt) + (sampling.max_tokens or 0))
        call = replica.generate(
            GenerateCall([*prompt, *delivered], sampling, len(delivered), span, model.model_sha256)
        )
        # Before it accepts a request, an engine compiles the constraint, which may take long.
        waiting = None if sampling.constraint else replica.first_tokens.begin()
        try:
            with lease:
                async with call as stream, read_ahead(stream) as chunks:
                    with active.on_cancel(stream.cancel):
                        async for chunk in chunks:
                            if not accepted and waiting is None:
                                waiting = replica.first_tokens.begin()
                            accepted = True
                            waiting = _served(replica, waiting, chunk)
                            delivered += chunk.token_ids
                            if chunk.finish is not None:
                                attempts.succeeded(replica, delivered)
                                yield chunk
                                return
                            if waiting is None:
                                direct.connect(stream, delivered)
                            yield chunk
            raise MeshError(ErrorKind.UNAVAILABLE, "the engine ended a stream without a finish")
        except MeshError as error:
            attempts.failed(replica, error, delivered, accepted=accepted)
        finally:
            if waiting is not None:
                replica.first_tokens.left(waiting)
        reason = _finish_reason(delivered, sampling, model)
        if reason is not None:  # only the finish was lost with the replica
            yield TokenChunk(
                (), finish=GenerationFinish(reason, Usage(len(prompt), len(delivered)))
            )
            return


def _served(replica: Replica, waiting: object, chunk: TokenChunk) -> object:
    """Records the replica's first token; returns what still waits for it."""
    if waiting is None or not (chunk.token_ids or chunk.finish):
        return waiting
    replica.first_tokens.served(waiting)
    return None


def _finish_reason(
    delivered: Sequence[int], sampling: SamplingParams, model: ModelInfo
) -> FinishReason | None:
    """Why a generation with these tokens is complete; None if it is not."""
    if delivered and delivered[-1] in sampling.end_token_ids(model.eos_token_ids):
        return FinishReason.STOP
    if sampling.max_tokens is not None and len(delivered) >= sampling.max_tokens:
        return FinishReason.LENGTH
    return None
