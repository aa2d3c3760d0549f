"""A tokenizer restarted with other ids, and an engine restarted with other weights."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from safetensors.torch import load_file, save_file

from tests.chaos.cluster import Cluster, running_cluster
from tests.e2e.support.stack import ROOT

DEMO = ROOT / "models" / "demo"
REQUEST = {"model": "demo", "prompt": "A river", "max_tokens": 16, "temperature": 0}
DEADLINE_SECONDS = 120.0

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A copy of the demo model that a test modifies."""
    names = ("config.json", "generation_config.json", "model.safetensors")
    folder = tmp_path / "other"
    folder.mkdir()
    for name in (*names, "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, folder)
    return folder


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Two engines, one of each other service."""
    with running_cluster(tmp_path, {"inference": 2}, {"INFERENCE_MODEL_NAME": "demo"}) as cluster:
        yield cluster


class Client:
    """Sends the same greedy request; every success must have the same text."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self.statuses: Counter[int] = Counter()
        self.text = ""

    def ask(self) -> None:
        response = self._http.post("/v1/completions", json=REQUEST)
        self.statuses[response.status_code] += 1
        assert response.status_code in (200, 503), response.text
        if response.status_code == 200:
            text = response.json()["choices"][0]["text"]
            self.text = self.text or text
            assert text == self.text

    def readiness(self) -> str:
        return self._http.get("/readyz").text

    def ask_until(self, condition: Callable[[], bool], what: str) -> None:
        """Sends requests until `condition()` is true."""
        end = time.monotonic() + DEADLINE_SECONDS
        while not condition():
            assert time.monotonic() < end, f"never happened: {what}"
            self.ask()


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Client]:
    """A client of the gateway."""
    [url] = cluster.urls
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
        yield Client(http)


def test_a_tokenizer_with_other_ids_gets_no_answer(
    cluster: Cluster, client: Client, other: Path
) -> None:
    """Requests fail with 503 until the tokenizer has the engines' vocabulary again."""
    content = json.loads((other / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    # Every id means the next token.
    rotated = tokens[-1000:]
    ids = [vocabulary[token] for token in rotated]
    vocabulary.update(zip(rotated, ids[1:] + ids[:1], strict=True))
    (other / "tokenizer.json").write_text(json.dumps(content))
    client.ask()
    assert client.text
    [tokenizer] = cluster.of("tokenizer")
    tokenizer.end()
    tokenizer.start(TOKENIZER_MODEL=str(other))
    client.ask_until(lambda: "another vocabulary" in client.readiness(), "readiness says why")
    refused = client.statuses[503]
    for _ in range(5):
        client.ask()
    assert client.statuses[503] == refused + 5
    tokenizer.end()
    tokenizer.start()
    cluster.wait_ready()
    succeeded = client.statuses[200]
    client.ask()
    assert client.statuses[200] == succeeded + 1


def test_an_engine_with_other_weights_gets_no_requests(
    cluster: Cluster, client: Client, other: Path
) -> None:
    """The equal one answers everything; the other one is refused, as the log says."""
    tensors = load_file(other / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    save_file({**tensors, name: -tensors[name]}, other / "model.safetensors")
    client.ask()
    [orchestrator] = cluster.of("orchestrator")
    replaced = cluster.of("inference")[1]
    replaced.send(signal.SIGTERM)
    assert replaced.wait() == 0
    replaced.start(INFERENCE_MODEL=str(other))

    def refused() -> bool:
        return "other weights or settings" in orchestrator.log.read_text()

    client.ask_until(refused, "the other engine is refused")
    succeeded = client.statuses[200]
    for _ in range(20):
        client.ask()
    assert client.statuses[200] == succeeded + 20
    client.ask_until(lambda: "refused: " in client.readiness(), "readiness says why")
    assert client.readiness().startswith("ready\n")
