"""Random models are the same in one file and in shards."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks import make_model
from inference.model.weights.weights import open_weights


def test_shards_equal_one_file(tmp_path: Path) -> None:
    """Same names and values, an index, and no file above the size limit."""
    config = make_model.config_of("tiny")
    shapes = make_model.tensor_shapes(config)
    max_bytes = 80_000
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    torch.manual_seed(0)
    make_model.write_weights(tmp_path / "whole", config, "cpu")
    torch.manual_seed(0)
    make_model.write_weights(tmp_path / "parts", config, "cpu", max_bytes)
    files = sorted((tmp_path / "parts").glob("*.safetensors"))
    assert len(files) > 2
    assert all(file.stat().st_size < max_bytes + 4096 for file in files)
    assert [file.name for file in (tmp_path / "whole").iterdir()] == ["model.safetensors"]
    index = json.loads((tmp_path / "parts" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2 * sum(map(math.prod, shapes.values()))
    whole, parts = open_weights(tmp_path / "whole"), open_weights(tmp_path / "parts")
    for name, shape in shapes.items():
        assert torch.equal(whole.take(name, shape), parts.take(name, shape))
    assert whole.unused == parts.unused == []


@pytest.mark.parametrize("shape", make_model.SHAPES)
def test_no_tensor_is_lost_between_shards(shape: str) -> None:
    """Every name is in exactly one group, in order."""
    shapes = make_model.tensor_shapes(make_model.config_of(shape))
    groups = make_model.shards(shapes, 2**28)
    assert [name for names in groups for name in names] == list(shapes)
    assert all(groups)
