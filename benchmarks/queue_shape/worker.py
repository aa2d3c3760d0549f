"""The workers of the queue architecture: pop a job, call the engine, publish its tokens.

All workers of a pool share one process, one event loop and one channel to the engine, which is
cheaper than separate processes and favours the queue. Each waits on its own Redis connection.
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
    # Without a timeout, because a worker waits until there is a job.
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
    """Runs one job; publishes every chunk on arrival, and the finish last."""
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
    """Runs the pool until SIGTERM."""
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
