"""All inference engines: discovery by DNS, health, and choice of a replica for a request."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import socket
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

from mesh.errors import ErrorKind, MeshError
from mesh.rpc.tls import NO_TLS, TlsFiles
from orchestrator.generation import ModelInfo
from orchestrator.observability import metrics
from orchestrator.routing.agreement import Agreement, Refused, can_replace
from orchestrator.routing.backends.target import EngineTarget, parse_target
from orchestrator.routing.replica import Replica

logger = logging.getLogger("orchestrator.routing.replicas")

AFFINITY_TOKENS = 64
"""Tokens of the prompt that decide which replica it prefers. Requests of one template or one
conversation share them, so that they reuse that replica's prefix cache."""

MIN_TRUSTED = 0.5
"""Minimum fraction of engines with a closed circuit and first tokens in time. Below it both are
ignored: if so many engines fail, they are probably not the cause."""

NOT_READY_RETRY_SECONDS = 1.0


def _unknown(model: str) -> str:
    return ""


class Member(NamedTuple):
    """A replica, and the task that watches its health."""

    replica: Replica
    watching: asyncio.Task[None]


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
    ) -> None:
        """`targets` are HOST:PORT; each address that a host resolves to is a replica.

        With a CA in `tls`, a replica's certificate must be valid for that host. `vocabulary_of` a
        model's name returns the digest of its tokenizer's vocabulary, empty if it is not known.
        """
        self._agreement = Agreement(vocabulary_of)
        self._tls = tls
        self._targets = targets
        self._refresh_seconds = refresh_seconds
        self._members: dict[str, Member] = {}
        self._answers: dict[str, set[str]] = {}
        self._reported: dict[str, str] = {}
        """Reason by address of the replicas whose refusal has been logged."""
        self._changed = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Discovers replicas and watches them inside the block."""
        await self._refresh()
        refreshing = asyncio.create_task(self._keep_refreshing(), name="replicas")
        try:
            yield
        finally:
            tasks = [refreshing, *(member.watching for member in self._members.values())]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._members.clear()

    @property
    def ready(self) -> list[Replica]:
        """The replicas that can take requests."""
        return [member.replica for member in self._members.values() if member.replica.ready]

    @property
    def models(self) -> dict[str, ModelInfo]:
        """The models served now, by name: of each name one, which `Agreement` chooses."""
        return self._agreement.choose([replica.model for replica in self.ready if replica.model])

    @property
    def problems(self) -> list[str]:
        """Why ready replicas get no requests, a sentence for each; empty if all agree."""
        return sorted({refused.reason for refused in self._refused()})

    async def wait_changed(self) -> None:
        """Returns once `ready` has changed since the previous return. For one task only."""
        await self._changed.wait()
        self._changed.clear()

    def pick(
        self, model: ModelInfo, token_ids: Sequence[int], excluded: Collection[Replica] = ()
    ) -> Replica:
        """The best replica of exactly this model for this prompt. Raises MeshError (UNAVAILABLE).

        This is the replica that the start of the prompt prefers, unless its outstanding tokens
        exceed the least loaded replica's by more than the prompt's length, the most that a
        cached prefix can save. Otherwise it is a less loaded one.
        """
        candidates = [
            replica
            for replica in self.ready
            if replica not in excluded and can_replace(replica.model, model)
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
            replica: (replica.outstanding_tokens + num_tokens)
            * (highest_share / replica.slow_start.share)
            for replica in candidates
        }
        least = min(load.values())
        near = [replica for replica in candidates if load[replica] <= least + num_tokens]
        prefix = ",".join(map(str, token_ids[:AFFINITY_TOKENS]))
        return max(near, key=lambda replica: _preference(prefix, replica.address))

    async def _keep_refreshing(self) -> None:
        while True:
            await asyncio.sleep(self._refresh_seconds)
            await self._refresh()

    async def _refresh(self) -> None:
        found: dict[str, EngineTarget] = {}
        for target in self._targets:
            parsed = parse_target(target)
            # If DNS fails, the previous addresses remain valid.
            answer = await _resolve(parsed.address) or self._answers.get(target, set())
            self._answers[target] = answer
            found |= dict.fromkeys(answer, parsed)
        for address in found.keys() - self._members.keys():
            replica = Replica(address, self._notify, self._tls, found[address])
            watching = asyncio.create_task(replica.watch(), name=f"watch {address}")
            self._members[address] = Member(replica, watching)
        for address in found:
            self._members[address].replica.retired = False
        for address in self._members.keys() - found.keys():
            member = self._members[address]
            member.replica.retired = True
            if member.replica.outstanding_tokens:
                # Its channel must stay open until its last stream has ended.
                continue
            del self._members[address]
            member.watching.cancel()
            await asyncio.gather(member.watching, return_exceptions=True)
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
        self.check_agreement()
        self._changed.set()


async def _resolve(target: str) -> set[str]:
    host, _, port = target.rpartition(":")
    loop = asyncio.get_running_loop()
    try:
        records = await loop.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except OSError as error:
        logger.warning("name resolution failed", extra={"target": target, "error": str(error)})
        return set()
    hosts = {str(record[4][0]) for record in records}
    # A name with IPv4 and IPv6 addresses lists the same machines twice.
    preferred = {each for each in hosts if ":" not in each} or hosts
    return {f"[{each}]:{port}" if ":" in each else f"{each}:{port}" for each in preferred}


def _is_late(replica: Replica, others: Sequence[Replica]) -> bool:
    """Whether first tokens of a replica are overdue; counts each as a failure of its circuit."""
    late, num_new = replica.first_tokens.find_overdue(other.first_tokens for other in others)
    for _ in range(num_new):
        logger.warning("first token overdue", extra={"address": replica.address})
        metrics.FIRST_TOKENS_OVERDUE.inc()
        if replica.circuit.failure():
            logger.warning("circuit breaker opened", extra={"address": replica.address})
    return late


def _preference(prefix: str, address: str) -> bytes:
    """Rendezvous hashing: adding or removing a replica moves only that replica's prompts."""
    return hashlib.blake2b(f"{prefix}@{address}".encode(), digest_size=8).digest()
