"""Failures of one request alone: whether the request or the replica is the cause."""

from __future__ import annotations

import logging

from mesh.errors import INTERNAL_MESSAGE, ErrorKind, MeshError
from orchestrator.routing.replica import Replica

logger = logging.getLogger("orchestrator.routing.failures_alone")


def is_alone(error: MeshError) -> bool:
    """Whether an engine reports that it failed this request and no other."""
    return error.kind is ErrorKind.INTERNAL and error.is_reported


class FailuresAlone:
    """The replicas that failed one request alone, so that the request may be the cause."""

    def __init__(self) -> None:
        self._failed: dict[Replica, MeshError] = {}

    @property
    def first(self) -> MeshError | None:
        """The first failure; None if there is none."""
        return next(iter(self._failed.values()), None)

    def add(self, replica: Replica, error: MeshError) -> None:
        """Records a failure. Raises MeshError at its repetition, INVALID_REQUEST if it is known.

        It is no verdict on the replica: a request that fails at two replicas alike is the cause.
        """
        if any(str(error) == str(other) for other in self._failed.values()):
            logger.warning("request fails at every engine", extra={"error": error.message})
            if error.message == INTERNAL_MESSAGE:
                raise error
            problem = f"the request fails at every engine: {error.message}"
            raise MeshError(ErrorKind.INVALID_REQUEST, problem) from error
        logger.warning(
            "engine failed one request",
            extra={"address": replica.address, "error": error.message},
        )
        self._failed[replica] = error

    def blame(self) -> None:
        """Counts the failures against their replicas: another one has finished the request."""
        for replica in self._failed:
            if replica.circuit.failure():
                logger.warning("circuit breaker opened", extra={"address": replica.address})
