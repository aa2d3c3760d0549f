"""Small random models of every family, saved as Hugging Face folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from inference.engine import Engine
from inference.loading import EngineOptions, load_engine
from tests.inference.families import FAMILIES, save


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes the folder of a family's model, once a session."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            save(family, made[family])
        return made[family]

    return folder


@pytest.fixture
def make_engine(model_folder: Callable[[str], Path]) -> Callable[..., Engine]:
    """Makes an engine of a family's model; keyword arguments are engine options."""

    def make(family: str = "llama-tied-gqa", **options: Any) -> Engine:
        threads = torch.get_num_threads()
        defaults = {"dtype": "float32", "kv_cache_tokens": 4096, "threads": threads}
        folder = model_folder(family)
        return load_engine(EngineOptions(folder=folder, name=family, **{**defaults, **options}))

    return make


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    """Every family in turn."""
    return str(request.param)
