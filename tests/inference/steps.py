"""Random steps, KV caches and models for tests of the runner."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import torch

from inference.kv_cache.kv_cache import KVCache
from inference.model.config import ModelConfig, load_config
from inference.model.layers.torch_operations import TorchOperations
from inference.model.llama import Llama, MakeOperations
from inference.model.weights.weights import open_weights
from inference.runner.step import Step

CPU = torch.device("cpu")

Span = tuple[int, int]
"""Number of tokens that a sequence already has, and number of tokens in the step."""


def make_step(spans: list[Span], block_size: int, num_blocks: int, seed: int = 0) -> Step:
    """A step of sequences with random tokens in random blocks, with the logits of every row."""
    rng = random.Random(seed)
    blocks = rng.sample(range(num_blocks), num_blocks)
    token_ids: list[int] = []
    positions: list[int] = []
    begins = [0]
    tables: list[list[int]] = []
    for before, num_rows in spans:
        positions += range(before, before + num_rows)
        token_ids += (rng.randrange(100) for _ in range(num_rows))
        begins.append(len(positions))
        size = -(-(before + num_rows) // block_size)
        tables.append([blocks.pop() for _ in range(size)])
    return Step(
        token_ids=token_ids,
        positions=positions,
        begins=begins,
        block_tables=list(tables),
        outputs=list(range(len(positions))),
    )


def fill_cache(cache: KVCache, num_layers: int, seed: int = 0) -> None:
    """Fill the cache with random keys and values."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    for layer in range(num_layers):
        for stored in cache.layer(layer):
            stored.copy_(torch.randn(stored.shape, generator=generator))


def load_llama(
    folder: Path, device: torch.device = CPU, make_operations: MakeOperations = TorchOperations
) -> Llama:
    """Load the model in a folder, in float32."""
    return Llama(
        load_config(folder),
        open_weights(folder),
        max_context=512,
        dtype=torch.float32,
        device=device,
        make_operations=make_operations,
    )


def change(folder: Path, **values: object) -> ModelConfig:
    """The config of the model in a folder, with some values replaced."""
    return replace(load_config(folder), **values)  # type: ignore[arg-type]
