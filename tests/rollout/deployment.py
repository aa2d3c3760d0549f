"""The controllers of Kubernetes: Deployments, evictions, and the endpoints of Services in DNS."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from tests.rollout.kubelet import Manifest, Pod
from tests.rollout.name_server import NameServer

ENDPOINT_SECONDS = 0.5
"""Time until a change of a pod's readiness reaches kube-proxy, as on a small cluster."""

READY_SECONDS = 180.0

EVICTION_SECONDS = 0.5
"""Time until an eviction that the PodDisruptionBudget refused is tried again; kubectl waits 5 s."""


class Nodes:
    """The nodes that pods are spread over."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.cordoned: set[str] = set()

    def choose(self, pods: Sequence[Pod]) -> str:
        """The node with the fewest of a Deployment's pods that takes new ones."""
        numbers = {name: 0 for name in self.names if name not in self.cordoned}
        for pod in pods:
            if pod.node in numbers and not pod.terminating:
                numbers[pod.node] += 1
        return min(numbers, key=lambda name: numbers[name])


class Deployment:
    """The pods of one Deployment, and the endpoints of its Service."""

    def __init__(
        self,
        manifest: Manifest,
        services: Sequence[Manifest],
        budget: Manifest,
        names: NameServer,
        nodes: Nodes,
        code: Path,
        folder: Path,
        settings: Mapping[str, str],
    ) -> None:
        """`services` are the manifests of the Services that select the pods, and `budget` that of
        their PodDisruptionBudget."""
        self.manifest = manifest
        self._budget = budget
        self._nodes = nodes
        self.num_wanted = 0
        self.pods: list[Pod] = []
        self.extra_addresses: Collection[str] = ()
        """Records of the Service that belong to no pod."""
        self.endpoints: list[str] = []
        """Addresses of ready pods, as kube-proxy has them."""
        self._services = services
        self.name = _host_of(services[0])
        self._names = names
        self._start = (code, folder, settings)
        self._changed = asyncio.Event()
        self._updates: set[asyncio.Task[None]] = set()

    @property
    def available(self) -> list[Pod]:
        """The pods that are ready and stay."""
        return [pod for pod in self.pods if pod.ready]

    @property
    def port(self) -> int:
        """The first port of the container, which has its service."""
        container = self.manifest["spec"]["template"]["spec"]["containers"][0]
        return int(container["ports"][0]["containerPort"])

    async def scale(self, number: int) -> None:
        """Add or delete pods, and wait until `number` are ready and the others have ended."""
        self.num_wanted = number
        staying = [pod for pod in self.pods if not pod.terminating]
        for pod in staying[number:]:
            pod.delete()
        for _ in range(number - len(staying)):
            self._create()
        await self._until_settled()

    async def upgrade(self, manifest: Manifest) -> None:
        """Replace the pods by those of another manifest, if their template differs."""
        changed = manifest["spec"]["template"] != self.manifest["spec"]["template"]
        self.manifest = manifest
        if changed:
            await self.restart()

    async def evict(self, node: str) -> None:
        """Evict the pods of a node when the PodDisruptionBudget permits it, and replace them."""
        for pod in [pod for pod in self.pods if pod.node == node and not pod.terminating]:
            while not self._may_evict(pod):
                await asyncio.sleep(EVICTION_SECONDS)
            pod.delete()
            # The controller replaces a pod at once: an eviction has no surge.
            self._create()
        await self._until_settled()

    def _may_evict(self, pod: Pod) -> bool:
        spec = self._budget["spec"]
        unavailable = _share(spec["maxUnavailable"], self.num_wanted, math.ceil)
        if not pod.ready:
            return bool(spec["unhealthyPodEvictionPolicy"] == "AlwaysAllow")
        healthy = [each for each in self.available if not each.terminating]
        return len(healthy) - 1 >= self.num_wanted - unavailable

    async def restart(self) -> None:
        """`kubectl rollout restart`: replace the pods within maxSurge and maxUnavailable."""
        old = list(self.pods)
        strategy = self.manifest["spec"]["strategy"]["rollingUpdate"]
        surge = _share(strategy["maxSurge"], self.num_wanted, math.ceil)
        unavailable = _share(strategy["maxUnavailable"], self.num_wanted, math.floor)
        while True:
            staying = [pod for pod in self.pods if not pod.terminating]
            new = [pod for pod in staying if pod not in old]
            for _ in range(min(self.num_wanted + surge - len(staying), self.num_wanted - len(new))):
                new.append(self._create())
            spare = len(self.available) - (self.num_wanted - unavailable)
            for pod in [pod for pod in staying if pod in old][: max(0, spare)]:
                pod.delete()
            if len([pod for pod in new if pod.ready]) >= self.num_wanted:
                break
            await self._next_change()
        await self._until_settled()

    async def stop(self) -> None:
        """Kill all pods."""
        for pod in self.pods:
            pod.terminating = True
            pod.kill()
        await asyncio.gather(*(pod.wait_ended() for pod in self.pods))
        await asyncio.gather(*self._updates)

    def _create(self) -> Pod:
        node = self._nodes.choose(self.pods)
        pod = Pod(self.manifest, *self._start, self._on_change, node)
        self.pods.append(pod)
        self._on_change(pod)
        return pod

    def _on_change(self, pod: Pod) -> None:
        if pod.ended and pod.terminating and pod in self.pods:
            self.pods.remove(pod)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        updating = asyncio.create_task(self._update(), name="endpoints")
        self._updates.add(updating)
        updating.add_done_callback(self._updates.discard)

    async def _update(self) -> None:
        """Publish the endpoints: a terminating pod that still serves is one if no other is ready,
        as for kube-proxy."""
        ready = [pod.address for pod in self.pods if pod.ready and not pod.terminating]
        everything = [pod.address for pod in self.pods]
        serving = [pod.address for pod in self.pods if pod.serving]
        await asyncio.sleep(ENDPOINT_SECONDS)
        self.endpoints = ready or serving
        for service in self._services:
            publishes_all = service["spec"].get("publishNotReadyAddresses")
            listed = everything if publishes_all else ready
            extra = self.extra_addresses if service is self._services[0] else ()
            self._names.publish(_host_of(service), {*listed, *extra})

    async def _until_settled(self) -> None:
        async with asyncio.timeout(READY_SECONDS):
            while len(self.available) != self.num_wanted or len(self.pods) != self.num_wanted:
                await self._next_change()

    async def _next_change(self) -> None:
        async with asyncio.timeout(READY_SECONDS):
            await self._changed.wait()


def _host_of(service: Manifest) -> str:
    """The name of a Service in DNS."""
    metadata = service["metadata"]
    return f"{metadata['name']}.{metadata['namespace']}.svc.cluster.local"


def _share(value: int | str, number: int, rounded: object) -> int:
    """A number of pods, or a percentage of them."""
    if isinstance(value, int):
        return value
    exact = number * int(value.removesuffix("%")) / 100
    return math.ceil(exact) if rounded is math.ceil else math.floor(exact)
