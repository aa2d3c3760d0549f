"""`/v1/completions` as vLLM serves it, by a real engine: events as seen of vLLM 0.32."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from inference.engine.engine_thread import AsyncEngine
from inference.engine.errors import EngineError
from inference.sampling.sampling_params import SamplingParams
from mesh.protocol.constraints import ConstraintForm, OutputConstraint
from mesh.protocol.logprobs import TokenLogprob

_SAME = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty")
_SAME += ("frequency_penalty", "seed", "max_tokens", "min_tokens", "ignore_eos")


class VllmHttpServer:
    """Serves one engine; tests change what it answers."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.healthy = True
        self.refusal: Response | None = None
        """Sent instead of an answer."""
        self.cut_after: int | None = None
        """Number of events after which the connection is closed; None: never."""
        self.headers: list[dict[str, str]] = []
        self.bodies: list[dict[str, Any]] = []

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Yields HOST:PORT."""
        routes = [
            Route("/health", self.health),
            Route("/v1/models", self.models),
            Route("/metrics", self.metrics),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/embeddings", self.embeddings, methods=["POST"]),
        ]
        config = uvicorn.Config(Starlette(routes=routes), port=0, log_config=None, lifespan="off")
        server = uvicorn.Server(config)
        running = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.should_exit = server.force_exit = True
            await running

    async def health(self, _: Request) -> Response:
        """200 or 503."""
        return Response(status_code=200 if self.healthy else 503)

    async def models(self, _: Request) -> Response:
        """The model, and an adapter of it."""
        info = self.engine.model_info
        base = {"id": info.name, "max_model_len": info.max_context}
        return JSONResponse({"object": "list", "data": [base, {**base, "id": "adapter"}]})

    async def metrics(self, _: Request) -> Response:
        """The gauges of the load."""
        load = self.engine.load()
        values = {
            "num_requests_running": load.num_running,
            "num_requests_waiting": load.num_waiting,
            "kv_cache_usage_perc": load.kv_usage,
        }
        lines = [
            f'# TYPE vllm:{name} gauge\nvllm:{name}{{engine="0",model_name="m"}} {value}\n'
            for name, value in values.items()
        ]
        return PlainTextResponse("".join(lines))

    async def embeddings(self, request: Request) -> Response:
        """The vectors, in another order."""
        vectors = await self.engine.embed((await request.json())["input"])
        data = [{"index": number, "embedding": each} for number, each in enumerate(vectors)]
        return JSONResponse({"data": data[::-1]})

    async def completions(self, request: Request) -> Response:
        """Streamed or not."""
        body = await request.json()
        self.headers.append(dict(request.headers))
        self.bodies.append(body)
        if self.refusal is not None:
            return self.refusal
        params = _params(body)
        if body.get("stream"):
            return StreamingResponse(self._events(body, params), media_type="text/event-stream")
        async with aclosing(self.engine.generate("id", body["prompt"], params)) as outputs:
            logprobs = [each async for output in outputs for each in output.prompt_logprobs]
        entries = [None, *map(_prompt_entry, logprobs)]
        return JSONResponse({"choices": [{"index": 0, "prompt_logprobs": entries}]})

    async def _events(self, body: dict[str, Any], params: SamplingParams) -> AsyncIterator[str]:
        number = 0
        try:
            async with aclosing(self.engine.generate("id", body["prompt"], params)) as outputs:
                async for output in outputs:
                    if not output.token_ids and output.finish is None:
                        continue
                    if number == self.cut_after:
                        raise ConnectionResetError
                    number += 1
                    reason = None if output.finish is None else output.finish.reason
                    choice = {
                        "index": 0,
                        "text": "",
                        "token_ids": output.token_ids,
                        "logprobs": _logprobs(output.logprobs) if "logprobs" in body else None,
                        "finish_reason": reason,
                        "stop_reason": None,
                    }
                    yield f"data: {json.dumps({'choices': [choice]})}\n\n"
        except EngineError as error:
            yield f"data: {json.dumps({'error': {'message': str(error)}})}\n\n"
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "prompt_tokens_details": None}
        yield f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n"
        yield "data: [DONE]\n\n"


def _params(body: dict[str, Any]) -> SamplingParams:
    values = {name: body[name] for name in _SAME if name in body}
    bias = {int(token): value for token, value in body.get("logit_bias", {}).items()}
    form = body.get("structured_outputs")
    constraint = None
    if form is not None:
        [(name, text)] = form.items()
        names = {"json": ConstraintForm.JSON_SCHEMA}
        kind = names.get(name) or ConstraintForm(name)
        constraint = OutputConstraint(kind, "" if text is True else text)
    return SamplingParams(
        **values,
        logit_bias=bias,
        stop_token_ids=frozenset(body.get("stop_token_ids", ())),
        num_logprobs=body.get("logprobs"),
        num_prompt_logprobs=body.get("prompt_logprobs"),
        constraint=constraint,
    )


def _logprobs(logprobs: list[TokenLogprob]) -> dict[str, Any]:
    return {
        "tokens": [f"token_id:{each.token_id}" for each in logprobs],
        "token_logprobs": [each.logprob for each in logprobs],
        "top_logprobs": [
            {f"token_id:{token}": value for token, value in each.top} or None for each in logprobs
        ],
    }


def _prompt_entry(each: TokenLogprob) -> dict[str, Any]:
    values = {each.token_id: each.logprob, **dict(each.top)}
    return {str(token): {"logprob": value, "rank": 1} for token, value in values.items()}
