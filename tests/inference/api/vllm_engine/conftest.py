"""A small model with a tokenizer, served as VllmEngine and as InferenceService on one port."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from smg_grpc_proto.generated import vllm_engine_pb2_grpc

from inference.api.service import InferenceService
from inference.api.vllm_engine.model_files import ModelFiles
from inference.api.vllm_engine.service import VllmEngineService
from inference.engine.engine_thread import AsyncEngine
from inference.model.loading import EngineOptions, load_engine
from mesh.v1 import inference_pb2_grpc
from tests.helpers import Served, serve
from tests.inference.spelling import save_spelling

BLOCK_SIZE = 16
NUM_BLOCKS = 256


class Engines(NamedTuple):
    """The stubs of both services, and the objects that serve them."""

    vllm: Any
    own: Any
    served: Served
    service: VllmEngineService
    engine: AsyncEngine


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random model with a tokenizer."""
    path = tmp_path_factory.mktemp("vllm_engine")
    save_spelling(path)
    return path


@pytest.fixture
async def engines(folder: Path, no_tasks_left: None) -> AsyncIterator[Engines]:
    """One engine that runs four sequences and queues two."""
    async with serving(folder, max_num_seqs=4, max_num_waiting=2) as served:
        yield served


@asynccontextmanager
async def serving(folder: Path, **limits: int) -> AsyncIterator[Engines]:
    """One engine with these limits."""
    options = replace(
        EngineOptions.defaults(folder, "spelling"),
        dtype="float32",
        kernels="torch",
        kv_cache_tokens=NUM_BLOCKS * BLOCK_SIZE,
        threads=1,
        **limits,
    )
    engine = AsyncEngine(lambda: load_engine(options))
    await engine.start()
    service = VllmEngineService(engine, ModelFiles(folder))
    try:
        async with serve(service.servicer, InferenceService(engine).servicer) as served:
            yield Engines(
                vllm_engine_pb2_grpc.VllmEngineStub(served.channel),
                inference_pb2_grpc.InferenceServiceStub(served.channel),
                served,
                service,
                engine,
            )
    finally:
        await engine.stop()
