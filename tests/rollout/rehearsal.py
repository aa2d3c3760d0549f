"""`python -m tests.rollout.rehearsal`: every change of a cluster under load, printed as a table.

The process starts itself again in new user, network and mount namespaces, where 127.0.0.0/8 is its
own, /etc/resolv.conf names its own DNS server, and all ports are those of the chart.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from scripts.find_helm import find_helm
from tests.chaos.load import PROMPTS, CompletionRequest, Oracle
from tests.rollout.deployment import Deployment, Nodes
from tests.rollout.dns_faults import faults
from tests.rollout.kubelet import Manifest
from tests.rollout.load_balancer import Clients, Counts
from tests.rollout.name_server import NameServer

ROOT = Path(__file__).resolve().parents[2]
NAME_SERVER = "127.0.0.53"
NAMESPACE = "prod"
SERVICES = ("tokenizer", "inference", "orchestrator", "gateway")
INSIDE = "WEIR_REHEARSAL"
"""Variable of the process inside the namespaces."""

ENGINE = {
    "INFERENCE_FAKE_MODEL": "true",
    "INFERENCE_MODEL_NAME": "demo",
    "INFERENCE_FAKE_TOKENS_PER_SECOND": "50",
    "INFERENCE_MAX_CONTEXT": "2048",
    "ORCHESTRATOR_INDEX": "",
    "TOKENIZER_NUM_WORKERS": "1",
}
"""The fake engine, whose answers are known and which starts in a second."""

SETTLE_SECONDS = 3.0
"""Load before and after each change."""

NOT_PERMITTED = 77
"""Exit code where the system permits no namespaces; automake's for a skipped test."""

KILLED = ("orchestrator", "tokenizer")
"""Services that are killed; engines are in `tests.chaos`."""

KILL_SECONDS = 1.0
"""By which most new requests may be slower than all were before a pod was killed."""

Row = dict[str, Any]

Change = tuple[str, Callable[[], Awaitable[object]]]


def render(code: Path, values: Mapping[str, object]) -> list[Manifest]:
    """The manifests of the chart of `code`, with `values`."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(dict(values), file)
        file.flush()
        command = [str(find_helm()), "template", "weir", str(code / "charts" / "weir")]
        command += ["--namespace", NAMESPACE, "--kube-version", "1.36.0", "--values", file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return [document for document in yaml.safe_load_all(done.stdout) if document]


class Rehearsal:
    """The cluster of one run."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        manifests: Sequence[Manifest],
        upgraded: Sequence[Manifest],
    ) -> None:
        """`upgraded` are the manifests with a changed value."""
        self._arguments = arguments
        self._upgrades = [manifests, upgraded]
        self.nodes = Nodes("a", "b")
        self._random = random.Random(arguments.seed)
        self.names = NameServer(arguments.late)
        folder = Path(arguments.folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.deployments = {
            service: Deployment(
                _of(manifests, "Deployment", service)[0],
                _of(manifests, "Service", service),
                _of(manifests, "PodDisruptionBudget", service)[0],
                self.names,
                self.nodes,
                Path(arguments.code),
                folder,
                ENGINE,
            )
            for service in SERVICES
        }
        gateway = self.deployments["gateway"]
        lengths = (5, arguments.tokens // 4, arguments.tokens // 2, arguments.tokens)
        requests = [CompletionRequest(prompt=p, max_tokens=n) for p in PROMPTS[:4] for n in lengths]
        self.clients = Clients(gateway, Oracle(), requests, arguments.seed)

    async def run(self) -> list[Row]:
        """All changes for each number of replicas; a row for each."""
        transport = await self.names.listen(NAME_SERVER)
        rows: list[Row] = []
        try:
            for number in self._arguments.replicas:
                await asyncio.gather(
                    *(
                        # The others serve, and have one pod: that is faster.
                        deployment.scale(number if service in self._arguments.services else 1)
                        for service, deployment in self.deployments.items()
                    )
                )
                await self._until_served()
                if not self.clients.oracle.texts:
                    await self._learn()
                for name, change in self._changes(number):
                    seen = await self._under_load(change)
                    rows.append({"replicas": number, "change": name, **seen})
                    print(json.dumps(rows[-1]), flush=True)
        finally:
            for deployment in self.deployments.values():
                await deployment.stop()
            transport.close()
        return rows

    async def _learn(self) -> None:
        url, oracle = self._url(), self.clients.oracle
        await asyncio.gather(*(oracle.learn(url, [each]) for each in self.clients.requests))

    def _changes(self, number: int) -> list[Change]:
        changes: list[Change] = []
        kinds = self._arguments.changes
        for service in self._arguments.services:
            deployment = self.deployments[service]
            if "restart" in kinds:
                changes.append((f"restart {service}", deployment.restart))
            if "scale" in kinds:
                up, down = partial(deployment.scale, number + 1), partial(deployment.scale, number)
                changes += [(f"scale {service} up", up), (f"scale {service} down", down)]
            if "kill" in kinds and service in KILLED:
                changes.append((f"kill {service}", partial(self._kill, deployment)))
        if "upgrade" in kinds:
            changes.append(("helm upgrade", self._upgrade))
        if "drain" in kinds:
            changes.append(("drain a node", self._drain_node))
        if "dns" in kinds:
            orchestrator = self.deployments["orchestrator"]
            changes += faults(self.names, orchestrator, orchestrator.port)
        return changes

    async def _upgrade(self) -> None:
        """`helm upgrade` with a changed value, which all four Deployments have."""
        self._upgrades.reverse()
        manifests = self._upgrades[0]
        await asyncio.gather(
            *(
                deployment.upgrade(_of(manifests, "Deployment", service)[0])
                for service, deployment in self.deployments.items()
            )
        )

    async def _drain_node(self) -> None:
        """`kubectl drain` of the node with the most pods, of all services at the same time."""
        pods = [pod for each in self.deployments.values() for pod in each.pods]
        node = max(self.nodes.names, key=lambda name: sum(pod.node == name for pod in pods))
        self.nodes.cordoned.add(node)
        try:
            await asyncio.gather(*(each.evict(node) for each in self.deployments.values()))
        finally:
            self.nodes.cordoned.discard(node)

    async def _kill(self, deployment: Deployment) -> Row:
        victim = self._random.choice(deployment.available)
        killed = time.monotonic()
        victim.kill()
        # The container starts again, and becomes ready again.
        while victim.ready:
            await asyncio.sleep(0.05)
        served = killed if deployment.available else 0.0
        while not victim.ready:
            await asyncio.sleep(0.05)
        ready = time.monotonic()
        # The requests that were sent meanwhile have their first tokens at the end of the load.
        return {"killed": killed, "served": served or ready, "ready": ready}

    async def _under_load(self, change: Callable[[], Awaitable[object]]) -> Row:
        arguments, clients = self._arguments, self.clients
        began = time.monotonic()
        async with clients.running(arguments.clients):
            await asyncio.sleep(arguments.settle)
            moments = await change()
            await asyncio.sleep(arguments.settle)
            while len(clients.results) < arguments.streams:
                await asyncio.sleep(0.1)
        kill: Row = {}
        if isinstance(moments, dict):
            kill = clients.after_kill(**moments)._asdict()
        counts: Counts = clients.take()
        problems, clients.problems = sorted(set(clients.problems)), []
        row: Row = {**counts._asdict(), **kill, "seconds": time.monotonic() - began}
        if problems:
            row["problems"] = problems[:3]
        return row

    def _url(self) -> str:
        gateway = self.deployments["gateway"]
        return f"http://{gateway.endpoints[0]}:{gateway.port}"

    async def _until_served(self) -> None:
        async with asyncio.timeout(60):
            while len(self.deployments["gateway"].endpoints) == 0:
                await asyncio.sleep(0.1)


def _of(manifests: Sequence[Manifest], kind: str, component: str) -> list[Manifest]:
    """The objects of a component, in the order of their names."""
    label = "app.kubernetes.io/component"
    found = [
        each
        for each in manifests
        if each["kind"] == kind and each["metadata"]["labels"].get(label) == component
    ]
    return sorted(found, key=lambda each: str(each["metadata"]["name"]))


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    lines = [
        "| replicas | change | streams | refused | broken | wrong | longest wait for a first token "
        "| longest gap between tokens |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        "| {replicas} | {change} | {streams} | {refused} | {broken} | {wrong} "
        "| {longest_wait:.1f} s | {longest_gap:.1f} s |".format(**row)
        for row in rows
    ]
    return "\n".join(lines)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--services", nargs="+", default=list(SERVICES))
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--streams", type=int, default=200, help="least streams of each change")
    parser.add_argument("--tokens", type=int, default=200, help="tokens of the longest streams")
    parser.add_argument("--late", type=float, default=5.0, help="seconds by which DNS is late")
    parser.add_argument("--drain", type=int, default=30, help="drain.seconds of the chart")
    parser.add_argument(
        "--pre-stop", type=int, default=0, help="drain.preStopSeconds; 0: the chart's default"
    )
    parser.add_argument("--probe", type=int, default=5, help="pod.probePeriodSeconds")
    parser.add_argument("--settle", type=float, default=SETTLE_SECONDS)
    parser.add_argument("--changes", nargs="+", default=["restart", "upgrade", "scale", "kill"])
    parser.add_argument("--code", default=str(ROOT), help="working tree whose services run")
    parser.add_argument("--folder", default="", help="folder for the pods' logs")
    parser.add_argument("--out", default="", help="file for the rows as JSON")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    arguments = _parse(argv)
    given = list(sys.argv[1:] if argv is None else argv)
    if os.environ.get(INSIDE):
        return _inside(arguments)
    if subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode:
        print("network namespaces are not permitted here", file=sys.stderr)
        return NOT_PERMITTED
    with tempfile.TemporaryDirectory() as scratch:
        values = {
            "drain": {"seconds": arguments.drain, "preStopSeconds": arguments.pre_stop},
            # The time without readiness after which a pod is no endpoint stays the chart's.
            "pod": {
                "probePeriodSeconds": arguments.probe,
                "probeFailureThreshold": 15 // arguments.probe,
            },
        }
        path = Path(scratch) / "manifests.json"
        upgraded = {**values, "gateway": {"keepAliveSeconds": 14}, "log": {"level": "DEBUG"}}
        code = Path(arguments.code)
        path.write_text(json.dumps([render(code, each) for each in (values, upgraded)]))
        folder = arguments.folder or f"{scratch}/logs"
        command = [*UNSHARE, sys.executable, "-m", "tests.rollout.rehearsal", *given]
        environment = {**os.environ, INSIDE: str(path)}
        return subprocess.run(
            [*command, "--folder", folder], cwd=ROOT, env=environment, check=False
        ).returncode


UNSHARE = ("unshare", "--user", "--map-root-user", "--net", "--mount")


def _inside(arguments: argparse.Namespace) -> int:
    manifests, upgraded = json.loads(Path(os.environ[INSIDE]).read_text())
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as file:
        file.write(
            f"nameserver {NAME_SERVER}\n"
            f"search {NAMESPACE}.svc.cluster.local svc.cluster.local cluster.local\n"
            "options ndots:5\n"
        )
        file.flush()
        subprocess.run(["mount", "--bind", file.name, "/etc/resolv.conf"], check=True)
        rows = asyncio.run(Rehearsal(arguments, manifests, upgraded).run())
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))
    # Some faults of DNS refuse requests, which the table shows.
    refusing = [row for row in rows if row["refused"] and "dns" not in arguments.changes]
    failed = [row for row in rows if row["wrong"] or _is_broken(row) or _is_late(row)]
    return 1 if failed or refusing else 0


def _is_broken(row: Row) -> bool:
    """Streams may end with the orchestrator that is killed, and with nothing else."""
    return bool(row["broken"]) and row["change"] != "kill orchestrator"


def _is_late(row: Row) -> bool:
    """New requests are served within a second, or as soon as the only pod is ready again."""
    if "new_requests" not in row:
        return False
    late = row["typical_wait"] > row["quiet_wait"] + KILL_SECONDS
    if late or not row["new_requests"]:
        print(f"new requests wait after {row['change']}: {row}", file=sys.stderr)
    return late or not row["new_requests"]


if __name__ == "__main__":
    sys.exit(main())
