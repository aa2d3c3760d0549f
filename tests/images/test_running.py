"""The four containers, run with the settings of the chart's pods.

The tests run in this order; the last one stops the containers.
"""

from __future__ import annotations

import re

import httpx
import pytest

from tests.charts.rendered import COMPONENTS
from tests.e2e.support.sse import Event, events
from tests.images.conftest import ORDER
from tests.images.podman import CommandError, Podman
from tests.images.pods import Pod
from tests.images.probes import passes


async def test_a_search_streams_through_the_four_containers(client: httpx.AsyncClient) -> None:
    """The stream has the documents, the summary token by token, and the completion."""
    stream: list[Event] = []
    params = {"query": "what is backpressure", "streaming": "true"}
    async with client.stream("GET", "/api/v1/search", params=params) as response:
        assert response.status_code == 200
        stream = [event async for event in events(response)]
    assert [event.name for event in stream[:2]] == ["search_results", "token"]
    assert stream[0].data["results"]
    tokens = [event for event in stream if event.name == "token"]
    # The tokens arrive one by one, not in one burst at the end.
    assert len(tokens) >= 10
    assert tokens[-1].at > tokens[0].at
    end = stream[-1]
    assert end.name == "complete"
    assert end.data["finish_reason"] == "stop"
    text = "".join(event.data["token"] for event in tokens)
    assert end.data["citations"] == sorted({int(n) for n in re.findall(r"\[(\d+)\]", text)})


@pytest.mark.parametrize("component", COMPONENTS)
async def test_every_probe_passes(
    running: dict[str, str], pods: dict[str, Pod], component: str
) -> None:
    """Startup, readiness and liveness probes of the manifests succeed."""
    pod = pods[component]
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert await passes(pod.container[kind], running[component], pod.ports), kind


@pytest.mark.parametrize("component", COMPONENTS)
async def test_metrics_are_served(
    running: dict[str, str], pods: dict[str, Pod], component: str
) -> None:
    """/metrics is on the port that the manifests annotate."""
    port = pods[component].ports.get("metrics", pods[component].ports.get("http"))
    async with httpx.AsyncClient(trust_env=False) as client:
        response = await client.get(f"http://{running[component]}:{port}/metrics")
    assert response.status_code == 200
    assert f"{component}_" in response.text


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_container_is_confined(
    built: Podman, running: dict[str, str], pods: dict[str, Pod], component: str
) -> None:
    """It runs as the chart's user, without capabilities, and can write to its volumes only."""
    user = pods[component].spec["securityContext"]["runAsUser"]
    assert user == 10001
    assert built("exec", component, "id", "-u") == str(user)
    status = built("exec", component, "cat", "/proc/1/status")
    assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
    assert re.search(r"^Seccomp:\s+2$", status, re.MULTILINE)
    built("exec", component, "touch", "/tmp/written")
    for path in ("/app/written", "/var/tmp/written", "/written"):
        with pytest.raises(CommandError, match="Read-only file system"):
            built("exec", component, "touch", path)


@pytest.mark.parametrize("component", tuple(reversed(ORDER)))
async def test_a_container_exits_on_sigterm(
    built: Podman, running: dict[str, str], pods: dict[str, Pod], component: str
) -> None:
    """The process drains and exits with 0 within the grace period."""
    built("stop", component)
    state = built.inspect(component)["State"]
    assert state["ExitCode"] == 0
    assert not state["OOMKilled"]
