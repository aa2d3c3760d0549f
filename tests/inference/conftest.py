"""Small random models of every family, saved as Hugging Face folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from inference.engine.engine import Engine
from inference.model.loading import EngineOptions, load_engine
from inference.model.native.pool import ThreadPool
from inference.model.native.sampler import NativeSampler
from inference.sampling.sampler import Sampler
from inference.sampling.torch_sampler import TorchSampler
from mesh.v1 import inference_pb2_grpc
from tests.inference.client import serving
from tests.inference.model.families import FAMILIES, save
from tests.inference.model.native import KERNELS, compile_all, use_kernels

if TYPE_CHECKING:
    Stub = inference_pb2_grpc.InferenceServiceAsyncStub

LONG_CONTEXT = 12_288
"""A prompt of this length takes the small model far longer than a health check may take."""


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Compiles the native library before the time limit of the first test begins."""
    compile_all()
    return (yield)


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread: with small models on busy cores, two threads mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Make the folder of a family's model, once per session."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            save(family, made[family])
        return made[family]

    return folder


@pytest.fixture
def make_engine(model_folder: Callable[[str], Path]) -> Callable[..., Engine]:
    """Make an engine with a family's model; keyword arguments are engine options."""

    def make(family: str = "llama-tied-gqa", **options: Any) -> Engine:
        threads = torch.get_num_threads()
        defaults = {
            "device": "cpu",
            "dtype": "float32",
            "kernels": "torch",
            "kv_cache_tokens": 4096,
            "threads": threads,
            "num_speculative_tokens": 0,
        }
        values = {**defaults, **options}
        return load_engine(replace(EngineOptions.defaults(model_folder(family), family), **values))

    return make


@pytest.fixture
def make_slow_engine(model_folder: Callable[[str], Path], tmp_path: Path) -> Callable[..., Engine]:
    """Make an engine that computes a prompt of thousands of tokens in one long step."""

    def make(**options: Any) -> Engine:
        folder = tmp_path / "long"
        shutil.copytree(model_folder("llama-tied-gqa"), folder, dirs_exist_ok=True)
        config = json.loads((folder / "config.json").read_text())
        config["max_position_embeddings"] = LONG_CONTEXT
        (folder / "config.json").write_text(json.dumps(config))
        defaults = {
            "device": "cpu",
            "dtype": "float32",
            "kv_cache_tokens": LONG_CONTEXT,
            "max_num_batched_tokens": LONG_CONTEXT,
            "target_step_seconds": 0.0,
            "threads": torch.get_num_threads(),
            "num_speculative_tokens": 0,
        }
        values = {**defaults, **options}
        return load_engine(replace(EngineOptions.defaults(folder, "slow"), **values))

    return make


@pytest.fixture(params=KERNELS)
def sampler(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Sampler:
    """Each sampler in turn: torch's, then the native one with each CPU variant."""
    if use_kernels(request.param, monkeypatch) == "torch":
        return TorchSampler()
    return NativeSampler(ThreadPool(2))


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    """Every family in turn."""
    return str(request.param)


@pytest.fixture
async def stub(make_engine: Callable[..., Engine], no_tasks_left: None) -> AsyncIterator[Stub]:
    """A client of a service whose engine runs two sequences and queues one."""
    async with serving(lambda: make_engine(max_num_seqs=2, max_num_waiting=1)) as served:
        yield inference_pb2_grpc.InferenceServiceStub(served.channel)
