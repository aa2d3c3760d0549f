"""Plans of random faults: the same seed gives the same plan."""

from __future__ import annotations

import asyncio
import random
import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from tests.chaos.cluster import Cluster, Node
from tests.chaos.proxy import Proxy
from tests.e2e.support.stack import ROOT

FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")
"""Library of Debian's package `faketime`; without it, clock jumps are skipped."""

KINDS = ("kill", "stop", "reset", "delay", "garbage", "full_disk", "clock_jump")
WEIGHTS = (3, 3, 3, 2, 2, 1, 1)

HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Fault(NamedTuple):
    """One fault: its time in seconds, its kind, its process, its duration."""

    at: float
    kind: str
    service: str
    number: int
    seconds: float
    seed: int

    def __str__(self) -> str:
        return (
            f"{self.at:5.1f} s  {self.kind:<10} {self.service}-{self.number} {self.seconds:.1f} s"
        )


def plan(seed: int, seconds: float, numbers: dict[str, int]) -> list[Fault]:
    """The faults for a seed, ordered by time; the same seed gives the same faults."""
    rng = random.Random(seed)
    faults: list[Fault] = []
    at = 1.0
    while at < seconds:
        [kind] = rng.choices(KINDS, WEIGHTS)
        services = ["inference"] if kind in ("reset", "delay") else [*numbers, "inference"]
        service = rng.choice(services)
        fault = Fault(
            at=at,
            kind=kind,
            service=service,
            number=rng.randrange(numbers[service]),
            seconds=rng.uniform(0.3, 3.0),
            seed=rng.randrange(2**31),
        )
        faults.append(fault)
        at += rng.uniform(0.5, 3.0)
    return faults


class FaultInjector:
    """Injects faults; at most one process of a service is down or stopped at a time."""

    def __init__(self, cluster: Cluster, proxies: Sequence[Proxy], index: Path, clock: Path):
        self._cluster = cluster
        self._proxies = proxies
        self._index = index
        self._clock = clock
        self._down: dict[str, asyncio.Lock] = {}
        self.num_done: dict[str, int] = {}

    async def run(self, faults: Sequence[Fault]) -> None:
        """Injects all faults at their times; returns when all are over and repaired."""
        began = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as tasks:
            for fault in faults:
                await asyncio.sleep(began + fault.at - asyncio.get_running_loop().time())
                tasks.create_task(self._inject(fault), name=str(fault))

    async def _inject(self, fault: Fault) -> None:
        node = self._cluster.of(fault.service)[fault.number]
        if fault.kind in ("kill", "stop"):
            lock = self._down.setdefault(fault.service, asyncio.Lock())
            async with lock:
                await getattr(self, f"_{fault.kind}")(fault, node)
        else:
            await getattr(self, f"_{fault.kind}")(fault, node)
        self.num_done[fault.kind] = self.num_done.get(fault.kind, 0) + 1

    async def _kill(self, fault: Fault, node: Node) -> None:
        node.send(signal.SIGKILL)
        await asyncio.to_thread(node.wait)
        await asyncio.sleep(fault.seconds / 3)
        node.start()
        # The service's next fault waits until this process listens again.
        await self._wait_listening(node)

    async def _stop(self, fault: Fault, node: Node) -> None:
        node.send(signal.SIGSTOP)
        await asyncio.sleep(fault.seconds)
        node.send(signal.SIGCONT)

    async def _reset(self, fault: Fault, node: Node) -> None:
        self._proxies[fault.number].reset()

    async def _delay(self, fault: Fault, node: Node) -> None:
        proxy = self._proxies[fault.number]
        proxy.delay = fault.seconds / 20
        await asyncio.sleep(fault.seconds)
        proxy.delay = 0.0

    async def _garbage(self, fault: Fault, node: Node) -> None:
        """Sends random bytes, and random bytes after an HTTP/2 preface."""
        noise = random.Random(fault.seed).randbytes(2000)
        host, _, port = node.address.rpartition(":")
        for preface in (b"", HTTP2_PREFACE):
            try:
                reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(preface + noise)
                async with asyncio.timeout(3):
                    await reader.read(65536)
            except (OSError, TimeoutError):
                continue
            finally:
                if "writer" in locals():
                    writer.close()

    async def _full_disk(self, fault: Fault, node: Node) -> None:
        """Updates the index on a full disk: the update must fail and leave the index unchanged."""
        before = _contents(self._index)
        folder = self._index.parent / f"documents-{fault.seed}"
        folder.mkdir()
        for number in range(40):
            text = f"# Document {number}\n\n" + f"Sentences about the number {number}. " * 400
            (folder / f"{number}.md").write_text(text)
        command = [sys.executable, "-m", "orchestrator.index", str(folder)]
        done = await asyncio.to_thread(
            subprocess.run,
            [*command, "--out", str(self._index)],
            cwd=ROOT,
            capture_output=True,
            preexec_fn=_limit_file_size,
            timeout=120,
        )
        assert done.returncode != 0, "the update did not fail"
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        assert _contents(self._index) == before, "the index has changed"

    async def _clock_jump(self, fault: Fault, node: Node) -> None:
        hours = random.Random(fault.seed).choice([-48, -1, 1, 48])
        self._clock.write_text(f"{hours:+d}h\n")
        await asyncio.sleep(fault.seconds)
        self._clock.write_text("+0h\n")

    async def _wait_listening(self, node: Node) -> None:
        async with asyncio.timeout(300):
            while True:
                host, _, port = node.address.rpartition(":")
                try:
                    _, writer = await asyncio.open_connection(host, int(port))
                    writer.close()
                    return
                except OSError:
                    await asyncio.sleep(0.2)


def _contents(index: Path) -> tuple[str, int, int]:
    """Result of the integrity check, number of documents, number of passages."""
    with closing(sqlite3.connect(index, timeout=30)) as database:
        [integrity] = database.execute("PRAGMA integrity_check").fetchone()
        [documents] = database.execute("SELECT count(*) FROM documents").fetchone()
        [passages] = database.execute("SELECT count(*) FROM passages").fetchone()
    return integrity, documents, passages


def _limit_file_size() -> None:
    """Limits the size of files in the child process, so that writes fail with an error.

    The limit lets the transaction start, so that it fails in the middle.
    """
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (256 * 1024, 256 * 1024))
