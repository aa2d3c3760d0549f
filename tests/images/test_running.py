"""The four containers, run with the settings of the chart's pods.

The tests run in this order; the last one stops the containers.
"""

from __future__ import annotations

import re
import subprocess
import sys

import httpx
import pytest

from tests.charts.rendered import CHART, COMPONENTS
from tests.e2e.support.sse import Event, events
from tests.images.conftest import ORDER
from tests.images.podman import CommandError, Podman
from tests.images.pods import Pod, quantity
from tests.images.probes import passes

SCRIPT = CHART / "files" / "helm_test.py"


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
    # They arrive one after another, several tokens in each where text is quoted, not in one burst.
    assert len(tokens) >= 3
    assert tokens[-1].at > tokens[0].at
    end = stream[-1]
    assert end.name == "complete"
    assert end.data["finish_reason"] == "stop"
    text = "".join(event.data["token"] for event in tokens)
    assert end.data["citations"] == sorted({int(n) for n in re.findall(r"\[(\d+)\]", text)})


def test_the_helm_test_passes(built: Podman, running: dict[str, str], pods: dict[str, Pod]) -> None:
    """Each kind of request is served by the containers, by the script of `helm test`."""
    inference = f"{running['inference']}:{pods['inference'].ports['metrics']}"
    done = subprocess.run(
        [
            *(sys.executable, "-I", str(SCRIPT), "--query=tracing"),
            *("--model=demo", "--model=SmolLM2-135M-Instruct"),
            f"--url=http://{running['gateway']}:{pods['gateway'].ports['http']}",
            *("--embedding-model=demo", f"--engine-metrics={inference}"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "structured output with SmolLM2-135M-Instruct" in done.stdout


async def test_a_chat_gets_a_sentence(client: httpx.AsyncClient) -> None:
    """The chat model is in the images, so a real chat needs no network."""
    body = {
        "model": "SmolLM2-135M-Instruct",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "temperature": 0,
        "max_tokens": 32,
    }
    response = await client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    assert "Paris" in response.json()["choices"][0]["message"]["content"]


@pytest.mark.parametrize("component", COMPONENTS)
def test_memory_requests_cover_the_use(
    built: Podman, running: dict[str, str], pods: dict[str, Pod], component: str
) -> None:
    """The anonymous memory of a service's processes is within the request of ci/kind.yaml."""
    script = "cat /proc/[0-9]*/status"
    used = [
        int(line.split()[1])
        for line in built("exec", component, "sh", "-c", script).splitlines()
        if line.startswith(("RssAnon:", "RssShmem:"))
    ]
    requested = quantity(pods[component].container["resources"]["requests"]["memory"])
    assert 0 < sum(used) * 1024 <= requested


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
