"""Log lines about a peer that became ready, stopped serving or was lost."""

from __future__ import annotations

import asyncio
import logging

from mesh.rpc.peers.health_watch import Health

logger = logging.getLogger("mesh.rpc.peers")

ROUTINE_SECONDS = 1.0
"""A peer that serves again within this time was not lost: its connection was only replaced, such
as at its greatest age."""


class ChangeReport:
    """Logs the changes of one peer; a loss only if it lasts."""

    def __init__(self, kind: str, address: str, service: str | None = None) -> None:
        """`kind` begins the messages: peer or replica. `service`: a field of them."""
        self._kind = kind
        self._fields = {"address": address, "service": service}
        self._reported = False
        self._pending: asyncio.TimerHandle | None = None

    def changed(self, health: Health) -> None:
        """Record that the peer begins to serve, or that it does not serve any more."""
        self.cancel()
        if health is not Health.SERVING:
            loop = asyncio.get_running_loop()
            self._pending = loop.call_later(ROUTINE_SECONDS, self._gone, health)
        elif not self._reported:
            self._reported = True
            logger.info("%s ready", self._kind, extra=self._fields)

    def cancel(self) -> None:
        """Do not log the last change."""
        if self._pending is not None:
            self._pending.cancel()
            self._pending = None

    def _gone(self, health: Health) -> None:
        self._pending, self._reported = None, False
        if health is Health.NOT_SERVING:  # it drains, or lacks something itself
            logger.info("%s not ready", self._kind, extra=self._fields)
        else:
            logger.warning("%s lost", self._kind, extra=self._fields)
