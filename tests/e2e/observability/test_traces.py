"""The trace of a request: its complete span tree across four processes, for each outcome."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from mesh.observability.semconv import ENGINE_STEP, SCHEMA_URL
from mesh.rpc.channel import open_channel
from mesh.v1 import inference_pb2, inference_pb2_grpc
from tests.e2e.support.long_stream import COMPLETIONS, read, stream
from tests.e2e.support.tracing.collector import Span
from tests.e2e.support.tracing.span_tree import STAGES, SpanTree
from tests.e2e.support.tracing.trace_trees import (
    EMBEDDED,
    ENGINE,
    FAILED_OVER,
    OK,
    ORCHESTRATOR,
    REFUSED,
    UNKNOWN_MODEL,
    completion,
)
from tests.e2e.support.tracing.traced_stack import MAX_CONCURRENT, TracedStack, traced_stack

pytestmark = pytest.mark.timeout(420)

SUMMARIZE = "mesh.v1.OrchestratorService/SummarizeStream"
ENGINES = ("inference", "inference-2")
HOP_SECONDS = 0.5
"""Maximum delay of a cancellation between two services, on a busy machine."""

NUM_TRIES = 12
"""Tries until the spans cover enough time: another process may cause a gap between two stages."""

STAGES_AND_CALL = STAGES | {ORCHESTRATOR}
"""Names of the spans of a request that ends early."""

QUERY = "what is backpressure"
# Each word is several tokens and occurs in no other prompt, so that no prefix is cached.
LONG_PROMPT = " ".join(f"{n}th" for n in range(600, 850))


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, index: Path) -> Iterator[TracedStack]:
    with traced_stack(tmp_path_factory.mktemp("traced"), index) as stack:
        yield stack


@pytest.fixture
async def client(stack: TracedStack) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=stack.url, timeout=120, trust_env=False) as client:
        yield client


async def tree(stack: TracedStack, trace_id: str, expected: str) -> SpanTree:
    """Waits until the trace has as many spans as `expected`, and checks its tree.

    Without engine steps, of which there are more in some runs than in others.
    """
    number = expected.count("\n") + 1

    def complete(spans: list[Span]) -> bool:
        return len(without_steps(spans)) >= number

    spans = await asyncio.to_thread(stack.collector.wait, trace_id, complete)
    found = SpanTree(without_steps(spans))
    assert str(found) == expected
    return found


def without_steps(spans: list[Span]) -> list[Span]:
    return [span for span in spans if span.name != ENGINE_STEP]


async def refused(
    stack: TracedStack, client: httpx.AsyncClient, body: dict[str, Any], expected: str
) -> tuple[httpx.Response, SpanTree]:
    """The response to a completion that is refused, and its trace, which covers its time."""
    for _ in range(NUM_TRIES):
        response = await client.post(COMPLETIONS, json=body)
        found = await tree(stack, response.headers["x-trace-id"], expected)
        if found.is_covered(STAGES_AND_CALL):
            break
    found.assert_nested()
    assert found.is_covered(STAGES_AND_CALL), found
    return response, found


Engines = dict[str, "inference_pb2_grpc.InferenceServiceAsyncStub"]


@pytest.fixture
async def engines(stack: TracedStack) -> AsyncIterator[Engines]:
    """Connected stubs of both engines: connecting may take seconds on a busy machine."""
    channels = {name: open_channel(stack.addresses[name]) for name in ENGINES}
    stubs = {name: inference_pb2_grpc.InferenceServiceStub(c) for name, c in channels.items()}
    for stub in stubs.values():
        await stub.GetLoad(inference_pb2.GetLoadRequest(), wait_for_ready=True)
    yield stubs
    for channel in channels.values():
        await channel.close()


async def running_engine(engines: Engines) -> str:
    """Waits until an engine runs a request; returns the engine's name."""
    async with asyncio.timeout(60):
        while True:
            for name, stub in engines.items():
                if (await stub.GetLoad(inference_pb2.GetLoadRequest())).num_requests_running:
                    return name


def attributes(span: Span, **expected: Any) -> None:
    """Checks a span's attributes; `__` in a name means a dot."""
    named = {name.replace("__", "."): value for name, value in expected.items()}
    assert {name: span.attributes.get(name) for name in named} == named


async def test_a_search(stack: TracedStack, client: httpx.AsyncClient) -> None:
    """All hops and stages succeed, are nested, and cover the request's time."""
    coverage = []
    for number in range(NUM_TRIES):
        params = {"query": f"{QUERY} {'?' * number}", "streaming": "true"}
        response = await client.get("/api/v1/search", params=params)
        trace_id = response.headers["x-trace-id"]
        assert f'"trace_id":"{trace_id}"' in response.text
        found = await tree(stack, trace_id, OK)
        found.assert_nested()
        coverage.append(found.coverage())
        if coverage[-1] >= 0.95:
            break
    assert max(coverage) >= 0.95, found
    check_search_attributes(found, response)
    assert QUERY not in str(found.spans)
    assert {span.schema_url for span in found.spans} == {SCHEMA_URL}


def check_search_attributes(found: SpanTree, response: httpx.Response) -> None:
    """Checks the attributes of the semantic conventions and those of the engine."""
    attributes(
        found.roots[0],
        http__route="/api/v1/search",
        http__request__method="GET",
        http__response__status_code=200,
        server__address="127.0.0.1",
        weir__operation="search",
        weir__model="demo",
        weir__request__id=response.headers["x-request-id"],
    )
    assert found.roots[0].attributes["weir.time_to_first_token_seconds"] > 0
    assert operations(found) == ["chat", "invoke_workflow", "retrieval"]
    attributes(found.find(SUMMARIZE, "server"), gen_ai__agent__name="search")
    generation = found.find("chat demo", "client")
    server = found.find(ENGINE, "server")
    num_prompt_tokens = generation.attributes["gen_ai.usage.input_tokens"]
    assert num_prompt_tokens > 100
    attributes(
        generation,
        gen_ai__operation__name="chat",
        gen_ai__provider__name="weir",
        gen_ai__response__model="demo",
        gen_ai__response__id=response.headers["x-request-id"],
        gen_ai__request__stream=True,
        gen_ai__output__type="text",
    )
    attributes(server, weir__num_prompt_tokens=num_prompt_tokens)
    for span in (generation, server):
        attributes(span, gen_ai__request__model="demo", gen_ai__request__temperature=0.0)
        assert span.attributes["gen_ai.response.time_to_first_chunk"] > 0
    has_usage = [span for span in found.spans if any("gen_ai.usage" in n for n in span.attributes)]
    assert has_usage == [generation], "a sum over spans counts each token once"
    for span in (found.roots[0], generation, server):
        assert "weir.first_token" in [name for name, _, _ in span.events]
    check_engine_stages(found, server, num_prompt_tokens)
    check_addresses(found)


def operations(found: SpanTree) -> list[str]:
    """The GenAI operations of a trace, sorted."""
    names = [span.attributes.get("gen_ai.operation.name") for span in found.spans]
    return sorted(name for name in names if name is not None)


def check_addresses(found: SpanTree) -> None:
    """Checks that no span has a port in its `server.address`, and that each has the port."""
    spans = [span for span in found.spans if "server.address" in span.attributes]
    assert {"choose_replica", ENGINE} <= {span.name for span in spans}
    for span in spans:
        assert span.attributes["server.address"] == "127.0.0.1", span
        assert span.attributes["server.port"] > 0, span


def check_engine_stages(found: SpanTree, server: Span, num_prompt_tokens: int) -> None:
    """Checks the attributes and events of the engine's prefill and decode spans."""
    prefill, decode = found.find("prefill"), found.find("decode")
    chunks = [values for name, _, values in prefill.events if name == "weir.prefill_chunk"]
    computed = num_prompt_tokens - prefill.attributes["weir.num_cached_tokens"]
    assert sum(chunk["weir.num_tokens"] for chunk in chunks) == computed
    assert len(chunks) >= computed / 16
    assert all(chunk["weir.batch_size"] == 1 for chunk in chunks)
    assert prefill.end == decode.start
    attributes(
        decode,
        weir__num_tokens=server.attributes["weir.num_tokens"],
        weir__num_preemptions=0,
        weir__mean_batch_size=1.0,
    )


async def test_steps_are_in_the_traces_of_their_requests(
    stack: TracedStack, client: httpx.AsyncClient
) -> None:
    """One step in four is a child of the request's span, and none begins a trace."""
    body = {"prompt": "Once", "max_tokens": 200, "ignore_eos": True}
    response = await client.post(COMPLETIONS, json=body)
    stages = ("queue ok", "prefill ok", "decode ok")
    found = await tree(stack, response.headers["x-trace-id"], completion("ok", *stages))
    server = found.find(ENGINE, "server")
    steps = [span for span in stack.collector.spans() if span.name == ENGINE_STEP]
    assert all(step.parent_id for step in steps)
    own = [step for step in steps if step.parent_id == server.span_id]
    assert len(own) >= 3
    for step in own:
        assert step.trace_id == server.trace_id
        assert server.start <= step.start < step.end <= server.end
        attributes(step, weir__batch_size=1, weir__outcome="ok")
    assert "weir.step.num_decode_tokens" in own[-1].attributes


async def test_the_choices_of_a_request(stack: TracedStack, client: httpx.AsyncClient) -> None:
    """Each is a generation with its number, and all say how many there are, of which response."""
    body = {
        "messages": [{"role": "user", "content": "Hello"}],
        "n": 2,
        "max_tokens": 8,
        "response_format": {"type": "json_object"},
    }
    response = await client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    trace_id = response.headers["x-trace-id"]

    def complete(spans: list[Span]) -> bool:
        names = [span.name for span in spans]
        return names.count("chat demo") == 2 and "POST /v1/chat/completions" in names

    found = SpanTree(await asyncio.to_thread(stack.collector.wait, trace_id, complete))
    generations = found.find_all("chat demo")
    assert sorted(span.attributes["weir.choice.index"] for span in generations) == [0, 1]
    for span in generations:
        attributes(
            span,
            gen_ai__request__choice__count=2,
            gen_ai__response__id=response.json()["id"],
            gen_ai__request__stream=False,
            gen_ai__output__type="json",
        )
    assert operations(found) == ["chat", "chat"]
    attributes(found.roots[0], weir__operation="chat")


async def test_embeddings(stack: TracedStack, client: httpx.AsyncClient) -> None:
    """The operation has model, tokens and dimensions; the engine its queue and computation."""
    response = await client.post("/v1/embeddings", json={"input": LONG_PROMPT})
    found = await tree(stack, response.headers["x-trace-id"], EMBEDDED)
    found.assert_nested()
    assert operations(found) == ["embeddings"]
    num_tokens = response.json()["usage"]["prompt_tokens"]
    attributes(
        found.find("embeddings demo", "client"),
        gen_ai__provider__name="weir",
        gen_ai__request__model="demo",
        gen_ai__response__model="demo",
        gen_ai__usage__input_tokens=num_tokens,
        gen_ai__embeddings__dimension__count=len(response.json()["data"][0]["embedding"]),
        weir__num_inputs=1,
    )
    engine = found.find("mesh.v1.InferenceService/Embed", "server")
    attributes(engine, weir__num_prompt_tokens=num_tokens, gen_ai__request__model="demo")
    assert found.find("queue").end == found.find("compute").start
    attributes(found.roots[0], weir__operation="embeddings", weir__model="demo")


async def test_text_that_is_held_back(stack: TracedStack, client: httpx.AsyncClient) -> None:
    """The generation has the time in which the text could still become a stop string."""
    body: dict[str, Any] = {"prompt": "Once", "max_tokens": 24, "temperature": 0, "n": 1}
    plain = await client.post(COMPLETIONS, json=body)
    text = plain.json()["choices"][0]["text"]
    almost = text[: len(text) // 2] + "\x07"
    response = await client.post(COMPLETIONS, json={**body, "stop": [almost]})
    assert response.json()["choices"][0]["text"] == text
    stages = completion("ok", "queue ok", "prefill ok", "decode ok")
    found = await tree(stack, plain.headers["x-trace-id"], stages)
    held = [name for name in found.find("text_completion demo").attributes if "held" in name]
    assert held == [], "waiting for the first token is not holding back"
    found = await tree(stack, response.headers["x-trace-id"], stages)
    generation = found.find("text_completion demo")
    seconds = generation.attributes["weir.held_text.seconds"]
    assert 0 < seconds <= generation.seconds
    assert generation.attributes["weir.held_text.num_periods"] >= 1
    released = [values for name, _, values in generation.events if name == "weir.text_released"]
    assert sum(each["weir.duration_seconds"] for each in released) <= seconds


async def test_a_disconnect_during_prefill(
    stack: TracedStack, client: httpx.AsyncClient, engines: Engines
) -> None:
    """Every hop is cancelled, none is an error, and the engine stops within the prompt."""
    async with stream(client, LONG_PROMPT, max_tokens=50) as response:
        await running_engine(engines)
    expected = completion("cancelled", "queue ok", "prefill cancelled", is_long=True)
    found = await tree(stack, response.headers["x-trace-id"], expected)
    found.assert_nested(HOP_SECONDS)
    assert found.is_covered(STAGES_AND_CALL), found
    attributes(found.roots[0], http__response__status_code=499)
    assert "weir.client_disconnected" in [name for name, _, _ in found.roots[0].events]
    attributes(found.find(ENGINE, "server"), rpc__response__status_code="CANCELLED")


async def test_a_disconnect_during_decode(stack: TracedStack, client: httpx.AsyncClient) -> None:
    """Every hop is cancelled; the decode span has the number of generated tokens."""
    async with stream(client, "Once", max_tokens=1900) as response:
        await read(response, 150)  # an event has several tokens if the client is slow
    expected = completion("cancelled", "queue ok", "prefill ok", "decode cancelled")
    found = await tree(stack, response.headers["x-trace-id"], expected)
    found.assert_nested(HOP_SECONDS)
    assert found.coverage() >= 0.95, found
    assert 150 <= found.find("decode").attributes["weir.num_tokens"] < 1900
    attributes(found.find("text_completion demo"), gen_ai__request__max_tokens=1900)


async def test_a_request_over_the_admission_limit(
    stack: TracedStack, client: httpx.AsyncClient
) -> None:
    """429: refused at admission; only the client span of the call is an error."""
    async with AsyncExitStack() as held:
        for _ in range(MAX_CONCURRENT):
            await held.enter_async_context(stream(client, "Once"))
        response, found = await refused(stack, client, {"prompt": "Once"}, REFUSED)
    assert response.status_code == 429
    attributes(found.roots[0], http__response__status_code=429)
    for span in found.find_all(ORCHESTRATOR):
        attributes(span, rpc__response__status_code="RESOURCE_EXHAUSTED")


async def test_a_request_that_exceeds_its_deadline(stack: TracedStack) -> None:
    """504: the deadline is an error at every hop and in the last stage."""
    body = {"prompt": "Once", "max_tokens": 1900, "ignore_eos": True}
    url = f"http://{stack.addresses['short-timeout']}{COMPLETIONS}"
    async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
        response = await client.post(url, json=body)
    assert response.status_code == 504
    trace_id = response.headers["x-trace-id"]

    def complete(spans: list[Span]) -> bool:
        return (ENGINE, "server") in {(span.name, span.kind) for span in spans}

    # On a busy machine the deadline may pass during the prefill.
    spans = await asyncio.to_thread(stack.collector.wait, trace_id, complete)
    decodes = any(span.name == "decode" for span in spans)
    stages = ("prefill ok", "decode deadline!") if decodes else ("prefill deadline!",)
    expected = completion("deadline!", "queue ok", *stages)
    found = await tree(stack, trace_id, expected)
    found.assert_nested(HOP_SECONDS)
    assert found.coverage() >= 0.95, found
    attributes(found.roots[0], http__response__status_code=504, error__type="deadline")
    for span in found.find_all(ENGINE):
        attributes(span, rpc__response__status_code="DEADLINE_EXCEEDED")


async def test_an_invalid_request(stack: TracedStack, client: httpx.AsyncClient) -> None:
    """The gateway refuses with 400 in one span; the orchestrator refuses an unknown model."""
    body = {"prompt": "Once", "max_tokens": -1}
    expected = "gateway: POST /v1/completions invalid"
    response, found = await refused(stack, client, body, expected)
    assert response.status_code == 400
    attributes(found.roots[0], http__response__status_code=400, error__type=None)
    body = {"prompt": "Once", "model": "no-such-model"}
    response, found = await refused(stack, client, body, UNKNOWN_MODEL)
    assert response.status_code == 404


async def test_an_engine_is_killed(
    stack: TracedStack, client: httpx.AsyncClient, engines: Engines
) -> None:
    """The stream continues: the lost call is an error, and the request records the failover."""
    async with stream(client, "Once") as response:
        lost = await running_engine(engines)
        await read(response, 50, stack.processes[lost].kill)
    found = await tree(stack, response.headers["x-trace-id"], FAILED_OVER)
    found.assert_nested()
    generation = found.find("text_completion demo")
    [failover] = [values for name, _, values in generation.events if name == "weir.failover"]
    assert f"{failover['server.address']}:{failover['server.port']}" == stack.addresses[lost]
    assert failover["error.type"] == "unavailable"
    assert failover["weir.num_tokens"] >= 40
    attributes(
        found.roots[0],
        weir__num_failovers=1,
        weir__failover__causes=[f"unavailable: {failover['weir.error.message']}"],
        http__response__status_code=200,
    )
    assert failover["weir.error.message"]
    attributes(generation, weir__num_failovers=1, gen_ai__usage__output_tokens=1000)
    attributes(found.find(ENGINE, "server"), weir__num_resumed_tokens=failover["weir.num_tokens"])
    lost_call, _ = found.find_all(ENGINE, "client")
    attributes(lost_call, rpc__response__status_code="UNAVAILABLE", error__type="UNAVAILABLE")
    # The lost engine exported no spans; only the call to it covers its time.
    assert found.coverage(STAGES | {ENGINE}) >= 0.95, found


async def test_health_checks_are_not_traced(stack: TracedStack) -> None:
    """Health checks over HTTP and gRPC have no spans."""
    names = {span.name for span in stack.collector.spans()}
    assert ENGINE in names
    assert [name for name in names if re.search("health|Health|livez|readyz|metrics", name)] == []
