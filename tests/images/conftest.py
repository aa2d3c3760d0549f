"""Fixtures: the four images, built once from a local base image, and their containers."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.images.base import BASE_IMAGE, ROOT, make_base
from tests.images.podman import NoContainersError, Podman
from tests.images.pods import Pod
from tests.images.pods import pods as chart_pods
from tests.images.probes import ProbeFailedError, wait_until_passes

ORDER = (
    "tokenizer",
    "tokenizer-chat",
    "inference",
    "inference-chat",
    "orchestrator",
    "gateway",
)
MEGABYTE = 10**6
_report: list[str] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks all tests of this folder, which need images that take minutes to build."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.images)
            item.add_marker(pytest.mark.timeout(3600))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the sizes of the images, and the source of the pods."""
    for line in _report:
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def podman() -> Iterator[Podman]:
    """A podman with the base image; skips the tests where containers cannot run."""
    folder = Path(tempfile.mkdtemp(prefix="weir-", dir="/tmp"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        try:
            podman = Podman(folder)
            archive = make_base(ROOT / ".run")
            stack.callback(podman.close)
            podman("import", str(archive), BASE_IMAGE)
            podman.check(BASE_IMAGE)
        except NoContainersError as error:
            pytest.skip(f"THE IMAGES ARE NOT TESTED: {error}")
        yield podman


@pytest.fixture(scope="session")
def pods() -> dict[str, Pod]:
    """The chart's pods, in start order."""
    found, source = chart_pods()
    _report.append(f"the containers ran with the pods of {source}")
    return {component: found[component] for component in ORDER if component in found}


@pytest.fixture(scope="session")
def built(podman: Podman, pods: dict[str, Pod]) -> Podman:
    """The podman with the four images, built by `make build` without network."""
    make("wheels")
    variant = "cpu" if list((ROOT / "wheels").glob("torch-*+cpu*")) else "cuda"
    make("build", *build_arguments(podman), f"VARIANT={variant}")
    for image in (BASE_IMAGE, *(pod.image for pod in pods.values())):
        size = podman.inspect(image)["Size"] / MEGABYTE
        _report.append(f"image {image}: {size:.0f} MB")
    return podman


def build_arguments(podman: Podman) -> list[str]:
    """Arguments of `make build`."""
    arguments = [f"CONTAINER={podman.executable}", f"BASE_IMAGE={BASE_IMAGE}", "WHEELS=wheels"]
    return [*arguments, "BUILD_ARGS=--network=none"]


def make(*arguments: str) -> None:
    """Runs make in the repository; fails the test with the end of its output."""
    environment = {name: value for name, value in os.environ.items() if name[:4] != "MAKE"}
    done = subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        command = " ".join(arguments)
        pytest.fail(f"make {command}:\n{done.stdout[-4000:]}", pytrace=False)


@pytest.fixture(scope="session")
def running(built: Podman, pods: dict[str, Pod]) -> dict[str, str]:
    """Starts the containers as pods, probes them until ready; returns their addresses."""
    for pod in pods.values():
        built("run", *pod.run_arguments)
    addresses = {component: address_of(built, component) for component in pods}
    asyncio.run(_wait_ready(built, pods, addresses))
    return addresses


async def _wait_ready(podman: Podman, pods: dict[str, Pod], addresses: dict[str, str]) -> None:
    for kind in ("startupProbe", "readinessProbe"):
        for component, pod in pods.items():

            def alive(component: str = component) -> bool:
                return bool(podman.inspect(component)["State"]["Running"])

            probe = pod.container[kind]
            try:
                await wait_until_passes(probe, addresses[component], pod.ports, alive)
            except ProbeFailedError as error:
                state = podman.inspect(component)["State"]
                how = {key: state[key] for key in ("Status", "ExitCode", "OOMKilled")}
                log = podman("logs", component)[-3000:]
                raise AssertionError(f"{kind} of {component}: {error}, {how}\n{log}") from None


def address_of(podman: Podman, container: str) -> str:
    """The container's IP address on the test network."""
    networks = podman.inspect(container)["NetworkSettings"]["Networks"]
    (network,) = networks.values()
    return str(network["IPAddress"])


@pytest.fixture
async def client(running: dict[str, str], pods: dict[str, Pod]) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of the gateway's container."""
    url = f"http://{running['gateway']}:{pods['gateway'].ports['http']}"
    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
        yield client
