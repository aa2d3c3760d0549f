"""The script of `helm test`: sends requests to the gateway, and checks metrics and the trace.

Uses only Python's standard library, because it runs in the gateway's image.
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
"""Read timeout; on a busy CPU the first token may be slow."""


MESSAGES = [{"role": "user", "content": "Hello!"}]
ENDS = {"stop", "length"}
SCHEMA = {
    "type": "object",
    "properties": {"polite": {"type": "boolean"}},
    "required": ["polite"],
    "additionalProperties": False,
}
"""A schema that any model can complete, because it has two values only."""

FORMS = ('{"polite":true}', '{"polite":false}')
"""The two values, without white space."""


class Failed(Exception):
    """A check failed; the message is for the pod's log."""


class Gateway:
    """An HTTP client of the gateway."""

    def __init__(self, url: str, key: str = "", timeout: float = READ_SECONDS) -> None:
        self._url = urlsplit(url)
        self._key = key
        self._timeout = timeout

    @contextmanager
    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Iterator[HTTPResponse]:
        """Sends a request; yields the unread response, and closes the connection at the end."""
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
        # The certificate names the public host, not the Service. This test does not verify it.
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return HTTPSConnection(host, port, timeout=self._timeout, context=context)

    def post(self, path: str, body: Any) -> Any:
        """The JSON of a response. Raises Failed unless the status is 200."""
        with self.request("POST", path, body) as response:
            if response.status != 200:
                raise Failed(f"POST {path}: {response.status} {response.read(500)!r}")
            return json.load(response)

    def stream(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Iterator[str]:
        """Yields the data of each server-sent event as it arrives. Raises Failed."""
        with self.request(method, path, body, headers) as response:
            if response.status != 200:
                raise Failed(f"{method} {path}: {response.status} {response.read(500)!r}")
            for line in response:
                if line.startswith(b"data: "):
                    yield line[6:].decode().rstrip("\n")


def metric(addresses: list[str], name: str) -> float:
    """The sum of a metric over all pods that the HOST:PORT addresses resolve to."""
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
    """Calls `done()` until it returns True, retrying on errors. Raises Failed on timeout."""
    last = "not yet true"
    started = time.monotonic()
    while time.monotonic() - started < timeout:
        try:
            if done():
                return
        except (OSError, HTTPException, Failed, ValueError) as error:
            last = f"last error: {error}"
        time.sleep(POLL_SECONDS)
    raise Failed(f"{what}: not within {timeout:.0f} s ({last})")


def check_ready(gateway: Gateway, timeout: float, models: list[str]) -> None:
    """Waits until the gateway is ready and serves every model. Raises Failed."""

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
    """Streams a search; checks its events: results, tokens, completion."""
    path = f"/api/v1/search?query={quote(query)}&streaming=true&max_tokens=64"
    events = [json.loads(data) for data in gateway.stream("GET", path, headers=headers)]
    kinds = [event["type"] for event in events]
    if kinds[:1] != ["search_results"] or kinds[-1:] != ["complete"] or "token" not in kinds:
        raise Failed(f"the search's events were {kinds[:3]} … {kinds[-3:]}: {events[-1:]}")
    return f"{len(events[0]['results'])} results, {kinds.count('token')} token events"


def check_chat(gateway: Gateway, model: str) -> str:
    """Requests a chat completion, and streams another, as OpenAI's clients do."""
    body = {"model": model, "messages": MESSAGES, "max_tokens": 16}
    (choice,) = gateway.post("/v1/chat/completions", body)["choices"]
    if choice["message"]["role"] != "assistant" or choice["finish_reason"] not in ENDS:
        raise Failed(f"the chat's choice was {choice}")
    chunks = list(gateway.stream("POST", "/v1/chat/completions", {**body, "stream": True}))
    if chunks[-1:] != ["[DONE]"] or len(chunks) < 3:
        raise Failed(f"the chat's chunks ended with {chunks[-2:]}")
    return f"{len(chunks)} chunks"


def check_completion(gateway: Gateway, model: str) -> str:
    """Requests two completions of a prompt, and counts their tokens."""
    body = {"model": model, "prompt": "Once", "n": 2, "max_tokens": 4, "ignore_eos": True}
    response = gateway.post("/v1/completions", body)
    tokens = response["usage"]["completion_tokens"]
    if len(response["choices"]) != 2 or tokens != 8:
        raise Failed(f"the completions were {response}")
    return f"{tokens} tokens"


def check_structured_output(gateway: Gateway, model: str) -> str:
    """Requests an answer in a JSON schema, and checks that it has this form."""
    form = {"name": "answer", "strict": True, "schema": SCHEMA}
    body = {"model": model, "messages": MESSAGES, "max_tokens": 64, "temperature": 0}
    body |= {"response_format": {"type": "json_schema", "json_schema": form}}
    (choice,) = gateway.post("/v1/chat/completions", body)["choices"]
    return _in_schema(choice["message"]["content"], choice["finish_reason"])


def check_tool(gateway: Gateway, model: str) -> str:
    """Requires a call of a tool, and checks its name and arguments."""
    tool = {"type": "function", "function": {"name": "answer", "parameters": SCHEMA}}
    body = {"model": model, "messages": MESSAGES, "max_tokens": 128, "temperature": 0}
    body |= {"tools": [tool], "tool_choice": "required"}
    (choice,) = gateway.post("/v1/chat/completions", body)["choices"]
    calls = choice["message"].get("tool_calls") or []
    if not calls or calls[0]["function"]["name"] != "answer":
        raise Failed(f"the model called no tool: {choice}")
    return _in_schema(calls[0]["function"]["arguments"], choice["finish_reason"])


def _in_schema(text: str, finish_reason: str) -> str:
    """The text without white space, if it is JSON in SCHEMA. Raises Failed.

    A model may write white space until `max_tokens`; then the text is the beginning of such JSON.
    """
    written = "".join(text.split())
    is_cut = finish_reason == "length" and written
    if not any(written == form or (is_cut and form.startswith(written)) for form in FORMS):
        raise Failed(f"not in the requested form: {text!r}")
    return written


def check_response(gateway: Gateway, model: str) -> str:
    """Requests a response of OpenAI's Responses API."""
    body = {"model": model, "input": "Hello!", "max_output_tokens": 16, "store": False}
    response = gateway.post("/v1/responses", body)
    if response["object"] != "response" or response["status"] not in ("completed", "incomplete"):
        raise Failed(f"the response was {response}")
    return str(response["status"])


def check_message(gateway: Gateway, model: str) -> str:
    """Requests a message of Anthropic's Messages API."""
    body = {"model": model, "messages": MESSAGES, "max_tokens": 16}
    message = gateway.post("/v1/messages", body)
    if message["role"] != "assistant" or message["stop_reason"] not in ("end_turn", "max_tokens"):
        raise Failed(f"the message was {message}")
    return str(message["stop_reason"])


def check_embeddings(gateway: Gateway, model: str) -> str:
    """Requests the vectors of two texts."""
    body = {"model": model, "input": ["one text", "another text"]}
    vectors = [each["embedding"] for each in gateway.post("/v1/embeddings", body)["data"]]
    if len(vectors) != 2 or len(vectors[0]) != len(vectors[1]) or vectors[0] == vectors[1]:
        raise Failed(f"the vectors have the lengths {[len(vector) for vector in vectors]}")
    return f"{len(vectors[0])} dimensions"


def check_refusal(gateway: Gateway) -> str:
    """Requests a model that is not served, and checks the status and code of the error."""
    body = {"model": "no-such-model", "messages": MESSAGES}
    with gateway.request("POST", "/v1/chat/completions", body) as response:
        code = json.load(response).get("error", {}).get("code")
        if response.status != 404 or code != "model_not_found":
            raise Failed(f"a model that is not served: {response.status}, code {code}")
    return "an unknown model is 404"


def check_disconnect(gateway: Gateway, model: str, engines: list[str], timeout: float) -> str:
    """Disconnects during a stream; checks that the engine aborts the sequence."""
    cancelled = "inference_cancel_to_slot_free_seconds_count"
    running = "inference_num_requests_running"
    before = metric(engines, cancelled), metric(engines, running)
    body = {"model": model, "prompt": "Once", "stream": True, "max_tokens": 512}
    body |= {"ignore_eos": True}
    chunks = gateway.stream("POST", "/v1/completions", body)
    next(chunks)
    disconnected = time.monotonic()
    chunks.close()

    def freed() -> bool:
        now = metric(engines, cancelled), metric(engines, running)
        if now[0] > before[0] and now[1] <= before[1]:
            return True
        raise Failed(f"cancelled {before[0]:.0f} → {now[0]:.0f}, running {now[1]:.0f}")

    eventually("the sequence of the disconnected client is freed", timeout, freed)
    return f"sequence freed, observed after {time.monotonic() - disconnected:.1f} s"


def check_trace(url: str, trace_id: str, timeout: float) -> str:
    """Waits until the trace of the search has spans of each service. Raises Failed."""
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
        raise Failed(f"spans of {', '.join(sorted(found)) or 'no service'} so far")

    eventually(f"trace {trace_id} with all services", timeout, arrived)
    return f"trace {trace_id} has spans of all four services"


def service_names(trace: Any) -> Iterator[str]:
    """All values of service.name in an OTLP JSON document, at any depth."""
    if isinstance(trace, list):
        for each in trace:
            yield from service_names(each)
    elif isinstance(trace, dict):
        if trace.get("key") == "service.name":
            yield trace["value"]["stringValue"]
        for each in trace.values():
            yield from service_names(each)


MODEL_CHECKS: dict[str, Callable[[Gateway, str], str]] = {
    "chat": check_chat,
    "completion": check_completion,
    "structured output": check_structured_output,
    "forced tool": check_tool,
    "response": check_response,
    "message": check_message,
}
"""The checks of every model."""


def run(arguments: argparse.Namespace, key: str) -> None:
    """Runs all checks in order and logs a line for each. Raises Failed."""
    timeout: float = arguments.timeout
    gateway = Gateway(arguments.url, key)
    check_ready(gateway, timeout, arguments.model)
    log("ready", ", ".join(arguments.model))
    # The sampled flag is set, so that this trace is recorded with any sampler.
    trace_id = secrets.token_hex(16)
    traceparent = {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"}
    log("search", check_search(gateway, arguments.query, traceparent))
    for model in arguments.model:
        for what, check in MODEL_CHECKS.items():
            log(f"{what} with {model}", check(gateway, model))
    for model in arguments.embedding_model:
        log(f"embeddings with {model}", check_embeddings(gateway, model))
    log("refusal", check_refusal(gateway))
    if arguments.engine_metrics:
        model = arguments.model[0]
        log("disconnect", check_disconnect(gateway, model, arguments.engine_metrics, timeout))
    else:
        log("disconnect", "skipped: the engines are external")
    if arguments.traces:
        log("trace", check_trace(arguments.traces, trace_id, timeout))
    else:
        log("trace", "skipped: telemetry.queryUrl is not set")


def log(check: str, result: str) -> None:
    """Prints a line of the log."""
    print(f"{check}: {result}", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True, help="base URL of the gateway")
    parser.add_argument("--query", required=True, help="search query")
    parser.add_argument("--model", action="append", default=[], help="name of a served model")
    parser.add_argument(
        "--embedding-model", action="append", default=[], help="name of a model with embeddings"
    )
    parser.add_argument(
        "--engine-metrics", action="append", default=[], help="HOST:PORT of the engines' metrics"
    )
    parser.add_argument("--traces", default="", help="base URL of Tempo's query API")
    parser.add_argument(
        "--timeout", type=float, default=120, help="timeout of each wait, in seconds"
    )
    try:
        run(parser.parse_args(), os.environ.get("WEIR_API_KEY", "").strip())
    except (Failed, OSError, HTTPException) as error:
        sys.exit(f"FAILED: {error}")


if __name__ == "__main__":
    main()
