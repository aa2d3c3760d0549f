"""The older shape's workers: each pops a job, calls the engine, publishes its tokens back.

All workers of a pool share one process, one event loop and one channel to the engine: cheaper
than a process each, to the queue's advantage. Each has a Redis connection of its own to wait on.
"""

from __future__ import annotations

import asyncio
import json
import signal
from typing import Any

import redis.asyncio as redis
import uvloop

from benchmarks.queue_shape.settings import JOBS, QueueSettings
from mesh.errors import MeshError
from mesh.process.settings import load
from mesh.rpc.channel import open_channel, open_stream
from mesh.v1 import common_pb2, inference_pb2, inference_pb2_grpc


async def work(settings: QueueSettings, stub: Any) -> None:
    """One worker, until cancelled."""
    # A worker waits for as long as there is nothing to do; the library would give up after seconds.
    connection = redis.Redis(port=settings.redis_port, socket_timeout=None)
    try:
        while True:
            popped = await connection.brpop([JOBS], timeout=0)
            job = json.loads(popped[1])
            try:
                await generate(job, stub, connection)
            except MeshError as error:
                event = {"id": job["id"], "error": error.message}
                await connection.publish(job["reply"], json.dumps(event))
    finally:
        await connection.aclose()


async def generate(job: dict[str, Any], stub: Any, connection: redis.Redis) -> None:
    """One job: every chunk is published as it comes, the finish last."""
    request = inference_pb2.InferenceServiceGenerateRequest(
        token_ids=job["token_ids"],
        sampling=common_pb2.SamplingParams(
            max_tokens=job["max_tokens"], temperature=0.0, ignore_eos=True
        ),
    )
    async with open_stream(stub.Generate, request, timeout=300) as responses:
        async for response in responses:
            event: dict[str, Any] = {"id": job["id"], "ids": list(response.chunk.token_ids)}
            if response.HasField("finish"):
                usage = response.finish.usage
                event["finish"] = {
                    "prompt_tokens": usage.prompt_tokens,
                    "completion_tokens": usage.completion_tokens,
                }
            await connection.publish(job["reply"], json.dumps(event))


async def main(settings: QueueSettings) -> None:
    """The pool, until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    channel = open_channel(settings.inference_target)
    stub = inference_pb2_grpc.InferenceServiceStub(channel)
    workers = [asyncio.create_task(work(settings, stub)) for _ in range(settings.workers)]
    print("ready", flush=True)
    stopping = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait({stopping, *workers}, return_when=asyncio.FIRST_COMPLETED)
    for task in workers:
        task.cancel()
    await asyncio.gather(*workers, return_exceptions=True)
    await channel.close()
    for task in done - {stopping}:
        task.result()


if __name__ == "__main__":
    uvloop.run(main(load(QueueSettings, "queue-worker")))
