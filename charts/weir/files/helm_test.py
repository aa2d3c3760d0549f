"""What `helm test` runs: asks the gateway as a user would, and looks behind it.

Needs Python's standard library only, so that it runs in the gateway's own image.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import quote, urlsplit

SERVICES = {"gateway", "orchestrator", "tokenizer", "inference"}
POLL_SECONDS = 0.5
READ_SECONDS = 120
"""Most silence in an answer; on a busy CPU a first token may take its time."""


class Failed(Exception):
    """What is wrong, for whoever reads the pod's log."""


class Gateway:
    """The gateway, as a client sees it."""

    def __init__(self, url: str, key: str = "", timeout: float = READ_SECONDS) -> None:
        self._url = urlsplit(url)
        self._key = key
        self._timeout = timeout

    @contextmanager
    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Iterator[HTTPResponse]:
        """The response, not yet read; leaving the block closes the connection."""
        connection = self._connection()
        sent = {"content-type": "application/json", **(headers or {})}
        if self._key:
            sent["authorization"] = f"Bearer {self._key}"
        try:
            connection.request(method, path, None if body is None else json.dumps(body), sent)
            yield connection.getresponse()
        finally:
            connection.close()

    def _connection(self) -> HTTPConnection:
        host, port = str(self._url.hostname), self._url.port
        if self._url.scheme != "https":
            return HTTPConnection(host, port, timeout=self._timeout)
        # Inside the cluster the name is another than the certificate's; what is tested here is
        # not who answers.
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return HTTPSConnection(host, port, timeout=self._timeout, context=context)

    def stream(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Iterator[str]:
        """The data of each server-sent event, as it arrives."""
        with self.request(method, path, body, headers) as response:
            if response.status != 200:
                raise Failed(f"{method} {path}: {response.status} {response.read(500)!r}")
            for line in response:
                if line.startswith(b"data: "):
                    yield line[6:].decode().rstrip("\n")


def metric(addresses: list[str], name: str) -> float:
    """The sum of a metric over all pods behind HOST:PORT addresses."""
    total = 0.0
    for address in addresses:
        host, _, port = address.rpartition(":")
        records = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
        for pod in sorted({str(record[4][0]) for record in records}):
            connection = HTTPConnection(pod, int(port), timeout=10)
            try:
                connection.request("GET", "/metrics")
                text = connection.getresponse().read().decode()
            finally:
                connection.close()
            lines = (line for line in text.splitlines() if line.startswith(name))
            total += sum(float(line.rpartition(" ")[2]) for line in lines)
    return total


def eventually(what: str, timeout: float, done: Callable[[], bool]) -> None:
    """Returns once `done()`, which may fail on the way. Raises Failed."""
    last = "it was not so yet"
    started = time.monotonic()
    while time.monotonic() - started < timeout:
        try:
            if done():
                return
        except (OSError, HTTPException, Failed, ValueError) as error:
            last = f"last: {error}"
        time.sleep(POLL_SECONDS)
    raise Failed(f"{what}: not within {timeout:.0f} s ({last})")


def check_ready(gateway: Gateway, timeout: float, models: list[str]) -> None:
    """A token can be produced, and every model is served."""

    def ready() -> bool:
        with gateway.request("GET", "/readyz") as response:
            if response.status != 200:
                raise Failed(response.read(200).decode(errors="replace").strip())
        with gateway.request("GET", "/v1/models") as response:
            served = {model["id"] for model in json.load(response).get("data", ())}
        missing = sorted(set(models) - served)
        if missing:
            raise Failed(f"no engine is ready for {', '.join(missing)}")
        return True

    eventually("ready, with all models", timeout, ready)


def check_search(gateway: Gateway, query: str, headers: dict[str, str]) -> str:
    """A streamed search: results, tokens, the end."""
    path = f"/api/v1/search?query={quote(query)}&streaming=true&max_tokens=64"
    events = [json.loads(data) for data in gateway.stream("GET", path, headers=headers)]
    kinds = [event["type"] for event in events]
    if kinds[:1] != ["search_results"] or kinds[-1:] != ["complete"] or "token" not in kinds:
        raise Failed(f"the search's events were {kinds[:3]} … {kinds[-3:]}: {events[-1:]}")
    return f"{len(events[0]['results'])} results, {kinds.count('token')} events of text"


def check_chat(gateway: Gateway, model: str) -> str:
    """A streamed chat, as OpenAI's clients ask for it."""
    messages = [{"role": "user", "content": "Hello!"}]
    body = {"model": model, "messages": messages, "stream": True, "max_tokens": 16}
    chunks = list(gateway.stream("POST", "/v1/chat/completions", body))
    if chunks[-1:] != ["[DONE]"] or len(chunks) < 3:
        raise Failed(f"the chat's chunks ended with {chunks[-2:]}")
    return f"{len(chunks)} chunks"


def check_disconnect(gateway: Gateway, model: str, engines: list[str], timeout: float) -> str:
    """A client that leaves in the middle: the engine ends the sequence and frees its slot."""
    left_early = "inference_cancel_to_slot_free_seconds_count"
    running = "inference_num_requests_running"
    before = metric(engines, left_early), metric(engines, running)
    body = {"model": model, "prompt": "Once", "stream": True, "max_tokens": 512}
    body |= {"ignore_eos": True}
    chunks = gateway.stream("POST", "/v1/completions", body)
    next(chunks)
    left = time.monotonic()
    chunks.close()

    def freed() -> bool:
        now = metric(engines, left_early), metric(engines, running)
        if now[0] > before[0] and now[1] <= before[1]:
            return True
        raise Failed(f"cancelled {before[0]:.0f} → {now[0]:.0f}, running {now[1]:.0f}")

    eventually("the slot of a client that left is free", timeout, freed)
    return f"slot free, seen after {time.monotonic() - left:.1f} s"


def check_trace(url: str, trace_id: str, timeout: float) -> str:
    """The search's trace is there, with a span of each service."""
    tempo = Gateway(url, timeout=10)
    found: set[str] = set()

    def arrived() -> bool:
        path = f"{urlsplit(url).path.rstrip('/')}/api/traces/{trace_id}"
        with tempo.request("GET", path, headers={"accept": "application/json"}) as response:
            if response.status != 200:
                raise Failed(f"{url} answers {response.status}")
            found.update(service_names(json.load(response)))
        if found >= SERVICES:
            return True
        raise Failed(f"spans of {', '.join(sorted(found)) or 'nobody'} so far")

    eventually(f"trace {trace_id} with all services", timeout, arrived)
    return f"trace {trace_id} has spans of all four"


def service_names(trace: Any) -> Iterator[str]:
    """Every service.name in OTLP's JSON, whatever lies around it."""
    if isinstance(trace, list):
        for each in trace:
            yield from service_names(each)
    elif isinstance(trace, dict):
        if trace.get("key") == "service.name":
            yield trace["value"]["stringValue"]
        for each in trace.values():
            yield from service_names(each)


def run(arguments: argparse.Namespace, key: str) -> None:
    """All checks in order, a line each. Raises Failed."""
    timeout: float = arguments.timeout
    gateway = Gateway(arguments.url, key)
    check_ready(gateway, timeout, arguments.model)
    say("ready", ", ".join(arguments.model))
    # Sampled, whatever share of traces is recorded otherwise.
    trace_id = secrets.token_hex(16)
    traceparent = {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"}
    say("search", check_search(gateway, arguments.query, traceparent))
    for model in arguments.model:
        say(f"chat with {model}", check_chat(gateway, model))
    if arguments.engine_metrics:
        model = arguments.model[0]
        say("disconnect", check_disconnect(gateway, model, arguments.engine_metrics, timeout))
    else:
        say("disconnect", "not tested: the engines are not of this release")
    if arguments.traces:
        say("trace", check_trace(arguments.traces, trace_id, timeout))
    else:
        say("trace", "not tested: telemetry.queryUrl is not set")


def say(what: str, how: str) -> None:
    """A line of the log, at once."""
    print(f"{what}: {how}", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True, help="base URL of the gateway")
    parser.add_argument("--query", required=True, help="what to search for")
    parser.add_argument("--model", action="append", default=[], help="a model that is served")
    parser.add_argument(
        "--engine-metrics", action="append", default=[], help="HOST:PORT of engines' metrics"
    )
    parser.add_argument("--traces", default="", help="base URL of Tempo's query API")
    parser.add_argument("--timeout", type=float, default=120, help="most seconds for each wait")
    try:
        run(parser.parse_args(), os.environ.get("WEIR_API_KEY", "").strip())
    except (Failed, OSError, HTTPException) as error:
        sys.exit(f"FAILED: {error}")


if __name__ == "__main__":
    main()
