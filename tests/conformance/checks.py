"""The checks. A check's docstring is its name; it raises AssertionError or Skipped."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import Awaitable, Callable
from itertools import pairwise

import httpx

from tests.conformance.client import Server, Skipped

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
RESPONSES = "/v1/responses"
ANTHROPIC = "/v1/messages"
MESSAGES = [{"role": "user", "content": "Write a sentence. Écris, 日本語で 👩‍👩‍👧."}]
LONG = {"max_tokens": 1000, "ignore_eos": True}

Check = Callable[[Server], Awaitable[None]]


async def models(server: Server) -> None:
    """GET /v1/models lists the model"""
    listed = (await server.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert server.model in [model["id"] for model in listed["data"]], listed


async def chat_shape(server: Server) -> None:
    """a chat completion has an id, choices, a finish reason and usage"""
    response = await server.post(CHAT, messages=MESSAGES, max_tokens=8)
    answer = response.json()
    assert response.status_code == 200, answer
    [choice] = answer["choices"]
    assert answer["object"] == "chat.completion"
    assert answer["id"]
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] in ("stop", "length")
    usage = answer["usage"]
    assert 0 < usage["completion_tokens"] <= 8
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


async def stream_equals_whole(server: Server) -> None:
    """the deltas of a stream concatenate to the message"""
    ask = {"messages": MESSAGES, "max_tokens": 24, "temperature": 0}
    whole = (await server.post(CHAT, **ask)).json()
    streamed = await server.stream(CHAT, **ask)
    assert streamed.text() == whole["choices"][0]["message"]["content"]
    assert streamed.content_type.startswith("text/event-stream")


async def stream_frames(server: Server) -> None:
    """a stream has the role first, then one finish reason, then [DONE]"""
    streamed = await server.stream(CHAT, messages=MESSAGES, max_tokens=8)
    assert streamed.done
    assert streamed.choices[0]["delta"].get("role") == "assistant"
    reasons = [choice["finish_reason"] for choice in streamed.choices]
    assert reasons[-1] in ("stop", "length")
    assert set(reasons[:-1]) <= {None}
    assert len({chunk["id"] for chunk in streamed.chunks}) == 1
    assert {chunk["object"] for chunk in streamed.chunks} == {"chat.completion.chunk"}


async def stream_is_incremental(server: Server) -> None:
    """tokens arrive while later ones are being generated"""
    streamed = await server.stream(TEXT, prompt="Once upon", **{**LONG, "max_tokens": 96})
    assert len(streamed.chunks) > 8, "the stream had too few chunks"
    assert streamed.times[-1] - streamed.times[0] > 0.005, "all chunks arrived at the same time"


async def utf8(server: Server) -> None:
    """every event is valid UTF-8, and no character is split between events"""
    ask = {"prompt": "日本語 👩‍👩‍👧 é", "max_tokens": 24, "temperature": 1.5, "seed": 7}
    whole = (await server.post(TEXT, **ask)).json()["choices"][0]["text"]
    streamed = await server.stream(TEXT, **ask)  # reading decodes each event by itself
    assert streamed.text() == whole


async def echo_unicode(server: Server) -> None:
    """a prompt with unusual characters is echoed unchanged"""
    prompt = "a\u0000b\tc\r\nd\u2028e\u0085f é e\u0301 👩‍👩‍👧 \U0010ffff 日本 \ufeff\u200f"
    response = await server.post(TEXT, prompt=prompt, echo=True, max_tokens=1)
    if response.status_code != 200:
        raise Skipped("echo is not supported")
    assert response.json()["choices"][0]["text"].startswith(prompt)


async def stop_is_held_back(server: Server) -> None:
    """a stop string ends the text and is not sent, not even in part"""
    ask = {"prompt": "The", "max_tokens": 24, "temperature": 0}
    text = (await server.post(TEXT, **ask)).json()["choices"][0]["text"]
    if len(text) < 12:
        raise Skipped("the model's text is too short")
    stop = text[6:10]
    expected = text[: text.index(stop)]
    streamed = await server.stream(TEXT, **ask, stop=[stop])
    whole = (await server.post(TEXT, **ask, stop=stop)).json()["choices"][0]
    assert streamed.text() == whole["text"] == expected
    assert whole["finish_reason"] == streamed.choices[-1]["finish_reason"] == "stop"


async def length_is_reported(server: Server) -> None:
    """max_tokens ends the text after that many tokens, with finish reason length"""
    answer = (await server.post(TEXT, prompt="The", max_tokens=5, ignore_eos=True)).json()
    if answer["usage"]["completion_tokens"] < 5:
        raise Skipped("the model stopped earlier, and ignore_eos is not supported")
    assert answer["usage"]["completion_tokens"] == 5
    assert answer["choices"][0]["finish_reason"] == "length"


async def usage_in_streams(server: Server) -> None:
    """include_usage adds a last chunk with usage and without choices"""
    ask = {"messages": MESSAGES, "max_tokens": 8, "temperature": 0}
    whole = (await server.post(CHAT, **ask)).json()["usage"]
    streamed = await server.stream(CHAT, **ask, stream_options={"include_usage": True})
    *chunks, last = streamed.chunks
    assert last["choices"] == []
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert last["usage"][name] == whole[name]
    assert all(chunk.get("usage") is None for chunk in chunks)


async def seeds(server: Server) -> None:
    """the same seed gives the same text"""
    ask = {"prompt": "The", "max_tokens": 12, "temperature": 1, "seed": 42}
    first, second = await asyncio.gather(server.post(TEXT, **ask), server.post(TEXT, **ask))
    assert first.json()["choices"][0]["text"] == second.json()["choices"][0]["text"]


async def logprobs(server: Server) -> None:
    """each token has logprobs, and their bytes concatenate to the text"""
    ask = {"messages": MESSAGES, "max_tokens": 8, "logprobs": True, "top_logprobs": 2}
    response = await server.post(CHAT, **ask, temperature=0)
    choice = response.json()["choices"][0]
    content = choice["logprobs"]["content"]
    assert all(each["logprob"] <= 0 and len(each["top_logprobs"]) == 2 for each in content)
    concatenated = b"".join(bytes(each["bytes"]) for each in content)
    assert choice["message"]["content"].encode() in concatenated


async def choices_interleave(server: Server) -> None:
    """n > 1 returns n choices, interleaved in a stream"""
    ask = {"prompt": "The", "n": 3, "seed": 1, **LONG, "max_tokens": 12}
    response = await server.post(TEXT, **ask)
    if response.status_code == 400:
        raise Skipped("n > 1 is not supported")
    assert sorted(choice["index"] for choice in response.json()["choices"]) == [0, 1, 2]
    streamed = await server.stream(TEXT, **ask)
    order = [choice["index"] for choice in streamed.choices if choice.get("text")]
    assert set(order) == {0, 1, 2}
    changes = sum(a != b for a, b in pairwise(order))
    assert changes > 2, f"the choices are not interleaved: {order}"


ERRORS = [
    (CHAT, {"messages": MESSAGES, "temperature": 9}, 400),
    (CHAT, {"messages": MESSAGES, "max_tokens": -1}, 400),
    (CHAT, {"messages": []}, 400),
    (CHAT, {"messages": MESSAGES, "model": "no such model"}, 404),
    (TEXT, {"prompt": "x " * 200_000}, 400),
]


async def error_bodies(server: Server) -> None:
    """errors have the right status and OpenAI's error body, streamed or not"""
    for path, body, status in ERRORS:
        for stream in (False, True):
            response = await server.post(path, **{**body, "stream": stream})
            error = response.json()["error"]
            assert response.status_code == status, (body.keys(), response.status_code)
            assert isinstance(error["message"], str)
            assert isinstance(error["type"], str)
            assert {"param", "code"} <= set(error)


async def bad_bytes(server: Server) -> None:
    """a body that is not valid JSON or Unicode is refused with 400"""
    surrogate = b'{"prompt": "\\ud800", "model": %s}' % json.dumps(server.model).encode()
    for body in (b"", b"{", b"[]", b'"x"', b"\xff\xfe", surrogate):
        response = await server.post_bytes(TEXT, body)
        assert response.status_code in (400, 422), (body, response.status_code)
        assert response.json()["error"]["message"]


async def unknown_fields(server: Server) -> None:
    """unknown fields are ignored"""
    response = await server.post(CHAT, messages=MESSAGES, max_tokens=1, no_such_field={"a": 1})
    assert response.status_code == 200


async def disconnect_frees(server: Server) -> None:
    """a disconnect aborts the request at once"""
    seen = False
    for attempt in range(4):
        await server.wait_idle(10)
        # A server may delay a scrape that follows others, until after the end of the stream.
        await asyncio.sleep(attempt)
        async with server.open(TEXT, prompt="Once", **LONG) as response:
            received = response.aiter_bytes()
            await anext(received)  # leaving a loop over it would close the connection
            seen = await server.num_running() > 0
        if seen:
            break
    assert seen, "the metrics never showed the stream"
    await server.wait_idle(5)


async def keep_alive(server: Server) -> None:
    """a stream without events for some time has keep-alive comments"""
    streamed = await server.stream(TEXT, prompt="Once " * 400, **{**LONG, "max_tokens": 16})
    if not streamed.comments:
        raise Skipped("the stream had no pause that was long enough")
    assert len(streamed.choices) > 0


async def response_shape(server: Server) -> None:
    """a response has an id, output items, a status and usage"""
    response = await server.post(RESPONSES, input="Write.", max_output_tokens=16)
    if response.status_code == 404:
        raise Skipped("there is no Responses API")
    answer = response.json()
    assert response.status_code == 200, answer
    assert answer["object"] == "response"
    assert answer["status"] in ("completed", "incomplete")
    [message] = [item for item in answer["output"] if item["type"] == "message"]
    assert message["role"] == "assistant"
    assert {part["type"] for part in message["content"]} == {"output_text"}
    usage = answer["usage"]
    assert 0 < usage["output_tokens"] <= 16
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


async def response_events(server: Server) -> None:
    """the events of a response are numbered, and their deltas concatenate to its text"""
    ask = {"input": "Write. Écris, 日本語で.", "max_output_tokens": 24, "temperature": 0}
    whole = await server.post(RESPONSES, **ask)
    if whole.status_code == 404:
        raise Skipped("there is no Responses API")
    events = (await server.stream(RESPONSES, **ask)).chunks
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"] for event in events]
    assert kinds[0] == "response.created"
    assert kinds[-1] in ("response.completed", "response.incomplete")
    for name in ("output_item", "content_part"):
        assert kinds.count(f"response.{name}.added") == kinds.count(f"response.{name}.done") > 0
    texts = [each["delta"] for each in events if each["type"] == "response.output_text.delta"]
    [message] = [each for each in whole.json()["output"] if each["type"] == "message"]
    assert "".join(texts) == "".join(part["text"] for part in message["content"])
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == "".join(texts)


async def response_continues(server: Server) -> None:
    """a conversation continues by previous_response_id; an unknown id is refused"""
    first = await server.post(RESPONSES, input="Write.", max_output_tokens=16)
    if first.status_code == 404:
        raise Skipped("there is no Responses API")
    id = first.json()["id"]
    second = await server.post(
        RESPONSES, input="More.", previous_response_id=id, max_output_tokens=16
    )
    assert second.status_code == 200, second.json()
    assert second.json()["previous_response_id"] == id
    assert second.json()["usage"]["input_tokens"] > first.json()["usage"]["input_tokens"]
    assert (await server.get(f"{RESPONSES}/{id}")).json()["id"] == id
    unknown = await server.post(RESPONSES, input="More.", previous_response_id="resp_unknown")
    assert unknown.status_code in (400, 404)
    assert unknown.json()["error"]["message"]


async def response_resumes(server: Server) -> None:
    """the stream of a response in the background can be read again, from any event on"""
    ask = {"input": "Write.", "max_output_tokens": 16, "temperature": 0, "background": True}
    streamed = await server.stream(RESPONSES, **ask)
    if streamed.status in (400, 404):
        raise Skipped("there are no streams of responses in the background")
    events = streamed.chunks
    id = events[0]["response"]["id"]
    for number in (0, len(events) // 2, len(events) - 2):
        rest = await server.get(f"{RESPONSES}/{id}?stream=true&starting_after={number}")
        assert rest.status_code == 200, rest.text
        lines = [line for line in rest.text.splitlines() if line.startswith("data: {")]
        assert [json.loads(line.removeprefix("data: ")) for line in lines] == events[number + 1 :]


async def response_input_items(server: Server) -> None:
    """the input items of a response are listed in pages, the newest first"""
    texts = ["One.", "Two.", "Three."]
    given = [{"role": "user", "content": text} for text in texts]
    response = await server.post(RESPONSES, input=given, max_output_tokens=4)
    path = f"{RESPONSES}/{response.json().get('id')}/input_items"
    first = await server.get(f"{path}?limit=2")
    if 404 in (response.status_code, first.status_code):
        raise Skipped("there are no input items")
    page = first.json()
    assert page["has_more"] is True
    rest = (await server.get(f"{path}?after={page['last_id']}")).json()
    assert rest["has_more"] is False
    listed = [item["content"][0]["text"] for item in [*page["data"], *rest["data"]]]
    assert listed == texts[::-1]


async def message_shape(server: Server) -> None:
    """a message has content blocks, a stop reason and usage, and its tokens can be counted"""
    ask = {"messages": MESSAGES, "system": "Be brief."}
    response = await server.post(ANTHROPIC, **ask, max_tokens=8)
    if response.status_code == 404:
        raise Skipped("there is no Messages API")
    answer = response.json()
    assert response.status_code == 200, answer
    assert (answer["type"], answer["role"]) == ("message", "assistant")
    assert {block["type"] for block in answer["content"]} <= {"text", "thinking"}
    assert answer["stop_reason"] in ("end_turn", "max_tokens")
    usage = answer["usage"]
    assert 0 < usage["output_tokens"] <= 8
    counted = await server.post(f"{ANTHROPIC}/count_tokens", **ask)
    cached = (usage.get("cache_read_input_tokens") or 0) + (
        usage.get("cache_creation_input_tokens") or 0
    )
    assert counted.json()["input_tokens"] == usage["input_tokens"] + cached


async def message_events(server: Server) -> None:
    """the events of a message open, fill and close its blocks in order"""
    ask = {"messages": MESSAGES, "max_tokens": 24, "temperature": 0}
    whole = await server.post(ANTHROPIC, **ask)
    if whole.status_code == 404:
        raise Skipped("there is no Messages API")
    events = (await server.stream(ANTHROPIC, **ask)).chunks
    events = [event for event in events if event["type"] != "ping"]
    start, *blocks, delta, stop = events
    assert (start["type"], stop["type"]) == ("message_start", "message_stop")
    assert start["message"]["content"] == []
    assert delta["type"] == "message_delta"
    assert delta["delta"]["stop_reason"] == whole.json()["stop_reason"]
    assert delta["usage"]["output_tokens"] == whole.json()["usage"]["output_tokens"]
    texts: list[str] = []
    opened: int | None = None
    for event in blocks:
        if event["type"] == "content_block_start":
            assert opened is None, "a block opens inside another one"
            opened = event["index"]
        assert event["index"] == opened
        if event["type"] == "content_block_stop":
            opened = None
        elif event.get("delta", {}).get("type") == "text_delta":
            texts.append(event["delta"]["text"])
    expected = [block["text"] for block in whole.json()["content"] if block["type"] == "text"]
    assert "".join(texts) == "".join(expected)


async def message_errors(server: Server) -> None:
    """errors of the Messages API have Anthropic's status, type and body, streamed or not"""
    if (await server.post(ANTHROPIC, messages=MESSAGES, max_tokens=1)).status_code == 404:
        raise Skipped("there is no Messages API")
    cases: list[tuple[dict[str, object], int, str]] = [
        ({"messages": MESSAGES}, 400, "invalid_request_error"),
        ({"messages": [], "max_tokens": 4}, 400, "invalid_request_error"),
        ({"messages": MESSAGES, "max_tokens": 4, "model": "no such"}, 404, "not_found_error"),
    ]
    for body, status, kind in cases:
        for stream in (False, True):
            response = await server.post(ANTHROPIC, **{**body, "stream": stream})
            error = response.json()
            assert response.status_code == status, (body.keys(), response.status_code)
            assert error["type"] == "error"
            assert error["error"]["type"] == kind
            assert isinstance(error["error"]["message"], str)


async def tokens(server: Server) -> None:
    """/tokenize counts as the usage does, and /detokenize restores the text"""
    text = "Once upon a time. Écris, 日本語で 👩‍👩‍👧."
    response = await server.post("/tokenize", prompt=text, return_token_strs=True)
    if response.status_code == 404:
        raise Skipped("there is no /tokenize")
    answer = response.json()
    assert response.status_code == 200, answer
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"]) > 0
    usage = (await server.post(TEXT, prompt=text, max_tokens=1)).json()["usage"]
    assert answer["count"] == usage["prompt_tokens"]
    plain = (await server.post("/tokenize", prompt=text, add_special_tokens=False)).json()
    restored = (await server.post("/detokenize", tokens=plain["tokens"])).json()
    assert restored["prompt"] == text
    counted = (await server.post("/tokenize", messages=MESSAGES)).json()["count"]
    usage = (await server.post(CHAT, messages=MESSAGES, max_tokens=1)).json()["usage"]
    assert counted == usage["prompt_tokens"]
    unknown = await server.post("/detokenize", tokens=[*plain["tokens"], 2**31])
    assert unknown.status_code == 400
    assert unknown.json()["error"]["message"]


DOCUMENTS = ["A river carries water to the sea.", "Cheese is made of milk.", "Where is the sea?"]


def skip_without_pooling(response: httpx.Response) -> None:
    """Skips a check if the engine has no embeddings, as vLLM with a model that generates."""
    if response.status_code == 501 or "does not support pooling" in response.text:
        raise Skipped("the engine has no embeddings")


async def embeddings(server: Server) -> None:
    """vectors are the same in both encodings, and have length 1 if they are shortened"""
    response = await server.post("/v1/embeddings", input=DOCUMENTS, encoding_format="float")
    if response.status_code == 404:
        raise Skipped("there is no /v1/embeddings")
    skip_without_pooling(response)
    answer = response.json()
    assert response.status_code == 200, answer
    assert [each["index"] for each in answer["data"]] == [0, 1, 2]
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 0
    vectors = [each["embedding"] for each in answer["data"]]
    assert len({len(vector) for vector in vectors}) == 1
    packed = await server.post("/v1/embeddings", input=DOCUMENTS[1], encoding_format="base64")
    content = base64.b64decode(packed.json()["data"][0]["embedding"])
    decoded = struct.unpack(f"<{len(vectors[1])}f", content)
    assert max(abs(a - b) for a, b in zip(decoded, vectors[1], strict=True)) < 1e-2
    short = await server.post("/v1/embeddings", input=DOCUMENTS[1], dimensions=8)
    if short.status_code == 200:  # some servers refuse it for models without Matryoshka training
        [entry] = short.json()["data"]
        assert len(entry["embedding"]) == 8
        assert abs(sum(value * value for value in entry["embedding"]) - 1) < 1e-2
    empty = await server.post("/v1/embeddings", input="")
    assert empty.status_code in (200, 400, 422)


async def rerank(server: Server) -> None:
    """a reranking sorts all documents by their score; the query itself is first"""
    ask = {"query": DOCUMENTS[2], "documents": DOCUMENTS}
    response = await server.post("/v1/rerank", **ask)
    if response.status_code == 404:
        raise Skipped("there is no /v1/rerank")
    skip_without_pooling(response)
    answer = response.json()
    assert response.status_code == 200, answer
    results = answer["results"]
    assert results[0]["index"] == 2
    assert sorted(result["index"] for result in results) == [0, 1, 2]
    order = [result["relevance_score"] for result in results]
    assert order == sorted(order, reverse=True)
    assert answer["usage"]["total_tokens"] > 0
    first = (await server.post("/v1/rerank", **ask, top_n=1)).json()["results"]
    assert [result["index"] for result in first] == [2]


async def score(server: Server) -> None:
    """one text is scored with each of several, and several with as many"""
    response = await server.post("/v1/score", text_1=DOCUMENTS[2], text_2=DOCUMENTS)
    if response.status_code == 404:
        raise Skipped("there is no /v1/score")
    skip_without_pooling(response)
    scores = [each["score"] for each in response.json()["data"]]
    assert len(scores) == 3
    assert max(scores) == scores[2] > scores[1]
    pairs = await server.post("/v1/score", text_1=DOCUMENTS, text_2=DOCUMENTS[::-1])
    ends = [each["score"] for each in pairs.json()["data"]]
    assert abs(ends[0] - scores[0]) < 1e-3
    assert abs(ends[0] - ends[2]) < 1e-3
    uneven = await server.post("/v1/score", text_1=DOCUMENTS, text_2=DOCUMENTS[:2])
    assert uneven.status_code in (400, 422)


CHECKS: list[Check] = [
    models,
    chat_shape,
    stream_equals_whole,
    stream_frames,
    stream_is_incremental,
    utf8,
    echo_unicode,
    stop_is_held_back,
    length_is_reported,
    usage_in_streams,
    seeds,
    logprobs,
    choices_interleave,
    error_bodies,
    bad_bytes,
    unknown_fields,
    response_shape,
    response_events,
    response_continues,
    response_resumes,
    response_input_items,
    message_shape,
    message_events,
    message_errors,
    tokens,
    embeddings,
    rerank,
    score,
    keep_alive,
    disconnect_frees,
]
