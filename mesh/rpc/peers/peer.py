"""One address of a service: its channel, its health, and the calls that run there."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from mesh.rpc.channel import open_channel
from mesh.rpc.peers.change_report import ChangeReport
from mesh.rpc.peers.health_watch import Health, HealthWatch
from mesh.rpc.tls import TlsFiles


class Peer:
    """Takes calls while it is serving; `watch` must run for that."""

    def __init__(
        self,
        address: str,
        service: str,
        on_change: Callable[[Peer], None],
        tls: TlsFiles,
        server_name: str,
    ) -> None:
        """`on_change` is called when `health` changes; the certificate is for `server_name`."""
        self.address = address
        self.health = Health.UNREACHABLE
        self.listed = True
        """Whether a name still resolves to it."""
        self.num_active = 0
        """Number of running calls."""
        self.not_serving_since = time.monotonic()
        self._on_change = on_change
        self._report = ChangeReport("peer", address, service)
        self.channel = open_channel(address, tls, server_name)
        self._watch = HealthWatch(self.channel, service, self._update)
        self._methods: dict[str, Any] = {}

    @property
    def serving(self) -> bool:
        """Whether it can take calls, as far as is known."""
        return self.health is Health.SERVING

    async def watch(self) -> None:
        """Follow the health until cancelled, then close the channel."""
        try:
            await self._watch.run(self.address)
        finally:
            self._report.cancel()
            await self.channel.close()

    def method(self, kind: str, path: str, arguments: Mapping[str, Any]) -> Any:
        """The callable of a method at this peer; `kind` is such as unary_stream."""
        method = self._methods.get(path)
        if method is None:
            method = self._methods[path] = getattr(self.channel, kind)(path, **arguments)
        return method

    def suspect(self) -> None:
        """Take it as unreachable after a broken call, until its health is known again."""
        self._set_health(Health.UNREACHABLE)
        self._watch.restart()

    async def confirm(self) -> bool:
        """Check the health now; returns whether it is serving."""
        health = await self._watch.check()
        if health is Health.UNREACHABLE:
            # The check may have been too late only; the running watch would report no change.
            self.suspect()
        else:
            self._set_health(health)
        return self.serving

    async def _update(self, health: Health) -> None:
        self._set_health(health)

    def _set_health(self, health: Health) -> None:
        if health is self.health:
            return
        if self.serving:
            self.not_serving_since = time.monotonic()
        if self.serving or health is Health.SERVING:
            self._report.changed(health)
        self.health = health
        self._on_change(self)
