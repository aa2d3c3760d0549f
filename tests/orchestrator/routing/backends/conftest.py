"""One real engine with a small random model, served by both protocols."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from inference.api.service import InferenceService
from inference.api.vllm_engine.model_files import ModelFiles
from inference.api.vllm_engine.service import VllmEngineService
from inference.engine.engine_thread import AsyncEngine
from inference.model.loading import EngineOptions, load_engine
from orchestrator.routing.backends.vllm_grpc.client import VllmBackend
from orchestrator.routing.backends.weir import WeirBackend
from tests.helpers import Served, serve
from tests.inference.spelling import save_spelling


class Backends(NamedTuple):
    """Both clients of the engine."""

    vllm: VllmBackend
    weir: WeirBackend
    engine: AsyncEngine
    served: Served


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random model with a tokenizer."""
    path = tmp_path_factory.mktemp("backends")
    save_spelling(path)
    return path


@pytest.fixture
async def backends(folder: Path) -> AsyncIterator[Backends]:
    """Both clients; afterwards the engine must be idle."""
    options = replace(
        EngineOptions.defaults(folder, "spelling"),
        dtype="float32",
        kernels="torch",
        kv_cache_tokens=4096,
        threads=1,
        max_num_seqs=4,
        max_num_waiting=2,
    )
    engine = AsyncEngine(lambda: load_engine(options))
    await engine.start()
    servicers = (
        VllmEngineService(engine, ModelFiles(folder)).servicer,
        InferenceService(engine).servicer,
    )
    try:
        async with serve(*servicers) as served:
            vllm = VllmBackend(served.channel)
            yield Backends(vllm, WeirBackend(served.channel), engine, served)
            await vllm.close()
        load = engine.load()
        assert (load.num_running, load.num_waiting) == (0, 0)
    finally:
        await engine.stop()
