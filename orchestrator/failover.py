"""A stream of tokens that outlives the replica it began on."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Sequence

from mesh.errors import ErrorKind, MeshError
from orchestrator import metrics
from orchestrator.clients.replica import Replica
from orchestrator.generation import ModelInfo, Sampling, TokenChunk, TokenFinish
from orchestrator.replicas import Replicas
from orchestrator.requests import ActiveRequest

logger = logging.getLogger("orchestrator.failover")

MAX_LOST_REPLICAS = 2
"""A request under which this many replicas broke is likely what breaks them."""


async def generate(
    replicas: Replicas,
    model: ModelInfo,
    prompt: Sequence[int],
    sampling: Sampling,
    active: ActiveRequest,
) -> AsyncGenerator[TokenChunk | TokenFinish, None]:
    """Tokens, then one finish. The first item has no tokens: a replica has accepted.

    If a replica is lost, another one gets the prompt and the tokens so far and goes on; it counts
    those as output, so penalties, seeds and limits hold as if nothing had happened, and greedy
    output is the same. Raises MeshError once there is no replica left to try.
    """
    delivered: list[int] = []
    lost: list[Replica] = []
    full: MeshError | None = None
    excluded: set[Replica] = set()
    while True:
        replica = await _next_replica(replicas, model, prompt, excluded, lost, full)
        token_ids = [*prompt, *delivered]
        num_tokens = len(token_ids) + (sampling.max_tokens or 0) - len(delivered)
        try:
            with replicas.lease(replica, num_tokens):
                async with replica.generate(token_ids, sampling, len(delivered)) as tokens:
                    with active.cancels(tokens.cancel):
                        async for item in tokens:
                            if isinstance(item, TokenFinish):
                                yield item
                                return
                            if delivered and not item.token_ids:
                                continue  # the acceptance of a replica that took over
                            delivered += item.token_ids
                            yield item
            raise MeshError(ErrorKind.UNAVAILABLE, "the engine ended a stream without a finish")
        except MeshError as error:
            if error.kind is ErrorKind.OVERLOADED:
                full = error
                excluded.add(replica)
            elif error.kind is ErrorKind.UNAVAILABLE and not active.cancelled:
                await _lose(replica, lost, error, len(delivered))
                excluded.add(replica)
            else:
                raise


async def _next_replica(
    replicas: Replicas,
    model: ModelInfo,
    prompt: Sequence[int],
    excluded: set[Replica],
    lost: Sequence[Replica],
    full: MeshError | None,
) -> Replica:
    try:
        return replicas.pick(model.name, prompt, excluded)
    except MeshError:
        if full is not None:
            raise full from None
        # The only one there is may have lost no more than a connection: if it says that it
        # serves, it gets one more try.
        for replica in dict.fromkeys(lost):
            await replica.confirm()
            if replica.ready and lost.count(replica) < MAX_LOST_REPLICAS:
                return replica
        raise


async def _lose(replica: Replica, lost: list[Replica], error: MeshError, so_far: int) -> None:
    replica.suspect()
    lost.append(replica)
    logger.warning(
        "replica lost under a request",
        extra={"address": replica.address, "num_tokens": so_far, "error": error.message},
    )
    if len(lost) >= MAX_LOST_REPLICAS:
        raise MeshError(
            ErrorKind.UNAVAILABLE,
            f"given up after {len(lost)} engines were lost under this request",
            retry_after=1.0,
        ) from error
    metrics.FAILOVERS.inc()
