"""All inference engines: discovery by DNS, health, and choice of a replica for a request."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import NamedTuple

import grpc.aio

from mesh.errors import ErrorKind, MeshError
from mesh.rpc.peers.balanced_channel import HOLD_SECONDS
from mesh.rpc.peers.discovery import Discovery
from mesh.rpc.peers.resolver import Resolve, resolve
from mesh.rpc.tls import NO_TLS, TlsFiles
from orchestrator.generation import ModelInfo
from orchestrator.observability import metrics
from orchestrator.routing.adapters import AdapterManager, routed_ids
from orchestrator.routing.agreement import Agreement, Refused
from orchestrator.routing.backends.cache_events import follow_cache
from orchestrator.routing.backends.target import parse_target
from orchestrator.routing.policies.policy import RoutingPolicy
from orchestrator.routing.policies.prefix import Prefix
from orchestrator.routing.policies.prefix_index import BLOCK_TOKENS
from orchestrator.routing.policies.simple import Affinity
from orchestrator.routing.replica import Replica
from orchestrator.routing.waking import Waking, WakingSettings

logger = logging.getLogger("orchestrator.routing.replicas")

MIN_TRUSTED = 0.5
"""Minimum fraction of engines with a closed circuit and first tokens in time. Below it both are
ignored: if so many engines fail, they are probably not the cause."""

NOT_READY_RETRY_SECONDS = 1.0


def _unknown(model: str) -> str:
    return ""


class Member(NamedTuple):
    """A replica, and the tasks that watch its health and follow its prefix cache."""

    replica: Replica
    watching: asyncio.Task[None]
    following: asyncio.Task[None] | None = None


class Lease:
    """Inside the block, a request's tokens count as outstanding at its replica."""

    __slots__ = ("_num_tokens", "_replica")

    def __init__(self, replica: Replica, num_tokens: int) -> None:
        self._replica = replica
        self._num_tokens = num_tokens

    def __enter__(self) -> None:
        self._replica.outstanding_tokens += self._num_tokens

    def __exit__(self, *_: object) -> None:
        self._replica.outstanding_tokens -= self._num_tokens


class Replicas:
    """All replicas of all models. Empty until `running` is entered."""

    def __init__(
        self,
        targets: Sequence[str],
        refresh_seconds: float,
        tls: TlsFiles = NO_TLS,
        vocabulary_of: Callable[[str], str] = _unknown,
        hold_seconds: float = HOLD_SECONDS,
        resolve: Resolve = resolve,
        policy: RoutingPolicy | None = None,
        follows_caches: bool = False,
        named: Mapping[str, Collection[str]] = MappingProxyType({}),
        waking: WakingSettings = WakingSettings(),  # noqa: B008 - it is immutable
    ) -> None:
        """`targets` are HOST:PORT; each address that a host resolves to is a replica.

        With a CA in `tls`, a replica's certificate must be valid for that host. `vocabulary_of` a
        model's name returns the digest of its tokenizer's vocabulary, empty if it is not known.
        `hold_seconds` is the time after the loss of a model's last replica in which `wait_ready`
        waits for the next one. `policy` is `Prefix` by default.
        `follows_caches`: engines that report changes of their prefix caches correct it.
        `named` has the targets (HOST:PORT) of the models that are known by name, and `waking` says
        what happens to requests for one without an engine.
        """
        self.adapters = AdapterManager(self)
        self.waking = Waking(named, waking, self._has_address)
        addresses = {parse_target(each).address for each in targets}
        self.all_are_named = addresses == {each for those in named.values() for each in those}
        """Whether the models of all engines are known, so that any other name is unknown."""
        self._last_known: dict[str, ModelInfo] = {}
        self._follows_caches = follows_caches
        self._policy = policy or Prefix()
        self._stateless = Affinity()
        self._agreement = Agreement(vocabulary_of)
        self._tls = tls
        self._targets = {each.address: each for each in map(parse_target, targets)}
        self._discovery = Discovery(list(self._targets), refresh_seconds, resolve)
        self._hold_seconds = hold_seconds
        self._members: dict[str, Member] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._lost: dict[str, float] = {}
        """When a model had a ready replica last, by its name; only of models without one."""
        self._served: set[str] = set()
        """Names of the models that had a ready replica at the last change."""
        self._reported: dict[str, str] = {}
        """Reason by address of the replicas whose refusal has been logged."""
        self._changed = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Discovers replicas and watches them inside the block."""
        finding = asyncio.create_task(
            self._discovery.run(self._reconcile, self._is_complete), name="find replicas"
        )
        following = asyncio.create_task(self.adapters.follow(), name="follow adapters")
        try:
            yield
        finally:
            tasks = [finding, following, *(member.watching for member in self._members.values())]
            tasks += self._closing
            tasks += (each.following for each in self._members.values() if each.following)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._members.clear()

    @property
    def ready(self) -> list[Replica]:
        """The replicas that can take requests.

        One whose address no name lists any more takes them only if no other of its model can.
        """
        ready = [member.replica for member in self._members.values() if member.replica.ready]
        if not any(replica.retired for replica in ready):
            return ready
        listed = {replica.model for replica in ready if not replica.retired}
        return [each for each in ready if not each.retired or each.model not in listed]

    def channels(self) -> list[grpc.aio.Channel]:
        """The channels to all known replicas, for calls to each of them."""
        return [member.replica.channel for member in self._members.values()]

    @property
    def models(self) -> Mapping[str, ModelInfo]:
        """The models served now, by name: of each name one, which `Agreement` chooses."""
        return self._agreement.choose([each for replica in self.ready for each in replica.models])

    @property
    def sleeping(self) -> dict[str, ModelInfo | None]:
        """The models without a ready engine that are known by name, as they were last served."""
        served = self._served
        return {
            name: self._last_known.get(name) for name in self.waking.names if name not in served
        }

    @property
    def problems(self) -> list[str]:
        """Why ready replicas get no requests, a sentence for each; empty if all agree."""
        return sorted({refused.reason for refused in self._refused()})

    def next_change(self) -> asyncio.Event:
        """Set when `ready` has changed."""
        return self._changed

    async def wait_ready(self, name: str, usable: Callable[[], bool]) -> bool:
        """Waits until `usable()`, while a replica of the model `name` may soon be ready.

        "" is any model. A replica may soon be ready if one was until a moment ago, such as in a
        rollout. Returns `usable()`.
        """
        self._discovery.hurry()
        while not usable():
            changed = self._changed
            lost = max(self._lost.values(), default=None) if not name else self._lost.get(name)
            left = 0.0 if lost is None else lost + self._hold_seconds - time.monotonic()
            if left <= 0:
                return False
            try:
                async with asyncio.timeout(left):
                    await changed.wait()
            except TimeoutError:
                pass
        return True

    async def wait_awake(self, name: str, usable: Callable[[], bool]) -> None:
        """Waits until `usable()` for a model that has no engine, if it is known by name.

        Raises MeshError (UNAVAILABLE).
        """
        self._discovery.hurry()
        await self.waking.wait(name, usable, self.next_change)

    def _has_address(self, targets: Collection[str]) -> bool:
        return any(target in targets for target in self._discovery.addresses.values())

    def pick(
        self,
        model: ModelInfo,
        token_ids: Sequence[int],
        excluded: Collection[Replica] = (),
        *,
        caches: bool = True,
    ) -> Replica:
        """The best replica of exactly this model for this prompt. Raises MeshError (UNAVAILABLE).

        The policy chooses among those that can be trusted. `caches`: the replica will compute the
        prompt and have it in its prefix cache.
        """
        candidates = [
            replica for replica in self.ready if replica not in excluded and replica.serves(model)
        ]
        if not candidates:
            raise MeshError(
                ErrorKind.UNAVAILABLE,
                f"no engine is ready for model {model.name!r}",
                retry_after=NOT_READY_RETRY_SECONDS,
            )
        if len(candidates) == 1:
            return candidates[0]
        trusted = [
            replica
            for replica in candidates
            if not replica.circuit.is_open and not _is_late(replica, candidates)
        ]
        if len(trusted) >= len(candidates) * MIN_TRUSTED:
            candidates = trusted
        num_tokens = len(token_ids)
        # During its slow start a replica's load is scaled up, so that it gets fewer requests.
        highest_share = max(replica.slow_start.share for replica in candidates)
        load = {
            replica.address: (replica.outstanding_tokens + num_tokens)
            * (highest_share / replica.slow_start.share)
            for replica in candidates
        }
        policy = self._policy if caches else self._stateless
        address = policy.choose(load, routed_ids(model, token_ids))
        return next(replica for replica in candidates if replica.address == address)

    def computed(
        self,
        replica: Replica,
        model: ModelInfo,
        prompt: Sequence[int],
        completion: Sequence[int],
    ) -> None:
        """Records that a replica's prefix cache has a prompt and its completion."""
        if replica.ready and len(self._members) > 1 and len(completion) >= BLOCK_TOKENS:
            self._policy.computed(replica.address, routed_ids(model, [*prompt, *completion]))

    def _reconcile(self) -> None:
        """Adds the replicas of new addresses, and removes those that are not needed any more."""
        found = self._discovery.addresses
        for address, name in found.items():
            if address not in self._members:
                target = self._targets[name]
                replica = Replica(address, self._on_change, self._tls, target)
                watching = asyncio.create_task(replica.watch(), name=f"watch {address}")
                self._members[address] = Member(replica, watching, self._follow(replica))
            self._members[address].replica.retired = False
        for address in self._members.keys() - found.keys():
            self._members[address].replica.retired = True
        usable = self.ready
        for address, (replica, watching, following) in list(self._members.items()):
            # Its channel must stay open until its last stream has ended.
            if replica.retired and not replica.outstanding_tokens and replica not in usable:
                del self._members[address]
                self._policy.forget(address)
                for task in filter(None, (watching, following)):
                    self._closing.add(task)
                    task.add_done_callback(self._closing.discard)
                    task.cancel()
        self._notify()

    def _follow(self, replica: Replica) -> asyncio.Task[None] | None:
        if not (self._follows_caches and replica.may_report_cache):
            return None
        mirror = self._policy.mirror(replica.address)
        if mirror is None:
            return None
        following = follow_cache(replica.channel, mirror)
        return asyncio.create_task(following, name=f"follow the cache of {replica.address}")

    def _is_complete(self) -> bool:
        return all(each.replica.ready or each.replica.retired for each in self._members.values())

    def _on_change(self) -> None:
        if not self._is_complete():
            self._discovery.hurry()
        self._notify()

    def check_agreement(self) -> None:
        """Chooses the models again and logs what changed; called whenever a tokenizer changes."""
        refused = {each.address: each.reason for each in self._refused()}
        for address, reason in refused.items():
            if self._reported.get(address) != reason:
                logger.error("replica refused", extra={"address": address, "reason": reason})
        self._reported = refused
        metrics.REPLICAS.set(len(self.ready) - len(refused))
        metrics.REPLICAS_REFUSED.set(len(refused))

    def _refused(self) -> list[Refused]:
        return self._agreement.refused(
            {each.address: each.model for each in self.ready if each.model}
        )

    def _notify(self) -> None:
        for address, member in self._members.items():
            if not member.replica.ready:
                self._policy.forget(address)
        self.check_agreement()
        served = {each.name for replica in self.ready for each in replica.models}
        now = time.monotonic()
        self._lost |= dict.fromkeys(self._served - served, now)
        self._lost = {
            name: lost
            for name, lost in self._lost.items()
            if name not in served and now - lost < self._hold_seconds
        }
        self._last_known |= {each.model.name: each.model for each in self.ready if each.model}
        self.waking.served(served)
        self._served = served
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def _is_late(replica: Replica, others: Sequence[Replica]) -> bool:
    """Whether first tokens of a replica are overdue; counts each as a failure of its circuit."""
    late, num_new = replica.first_tokens.find_overdue(other.first_tokens for other in others)
    for _ in range(num_new):
        logger.warning("first token overdue", extra={"address": replica.address})
        metrics.FIRST_TOKENS_OVERDUE.inc()
        if replica.circuit.failure():
            logger.warning("circuit breaker opened", extra={"address": replica.address})
    return late
