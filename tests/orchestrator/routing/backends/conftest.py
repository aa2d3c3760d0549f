"""One real engine with a small random model, served by all protocols."""

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
from orchestrator.routing.backends.vllm_http.client import VllmHttpBackend
from orchestrator.routing.backends.weir import WeirBackend
from tests.helpers import Served, serve
from tests.inference.spelling import save_spelling
from tests.orchestrator.routing.backends.vllm_http_server import VllmHttpServer


class Backends(NamedTuple):
    """Clients of the engine, and its servers."""

    vllm: VllmBackend
    http: VllmHttpBackend
    weir: WeirBackend
    engine: AsyncEngine
    served: Served
    http_server: VllmHttpServer


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random model with a tokenizer."""
    path = tmp_path_factory.mktemp("backends")
    save_spelling(path)
    return path


@pytest.fixture
async def backends(folder: Path) -> AsyncIterator[Backends]:
    """All clients; afterwards the engine must be idle."""
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
        http_server = VllmHttpServer(engine)
        async with serve(*servicers) as served, http_server.serving() as address:
            vllm = VllmBackend(served.channel)
            http = VllmHttpBackend(address, address)
            await http.model()
            weir = WeirBackend(served.channel)
            yield Backends(vllm, http, weir, engine, served, http_server)
            await vllm.close()
            await http.close()
        load = engine.load()
        assert (load.num_running, load.num_waiting) == (0, 0)
    finally:
        await engine.stop()
