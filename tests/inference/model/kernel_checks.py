"""Compares the Triton kernels with torch's operations.

Test modules that define a `device` fixture import these tests. On a GPU the kernels compute in
bfloat16 only; float32 is for exact comparisons in Triton's interpreter.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from inference.kv_cache.kv_cache import KVCache
from inference.model.config import ModelConfig
from inference.model.factory import FP8_CAPABILITY
from inference.model.kernels import product, sample
from inference.model.kernels.attention.combine import combine
from inference.model.kernels.triton_operations import TritonOperations
from inference.model.layers.linear import Fp8Linear, Linear
from inference.model.layers.rotary import RotaryEmbedding
from inference.model.layers.torch_operations import TorchOperations
from inference.runner.step_inputs import make_inputs
from inference.sampling.torch_sampler import gumbel_argmax, noise_keys
from tests.inference.steps import Span, fill_cache, make_step

TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


def make_config(**values: Any) -> ModelConfig:
    """The config of a small model."""
    defaults: dict[str, Any] = {
        "architecture": "LlamaForCausalLM",
        "vocab_size": 100,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_layers": 1,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 16,
        "max_position": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "output_bias": False,
        "mlp_bias": False,
        "qk_norm": False,
        "sliding_window": None,
        "no_rope_layers": frozenset(),
        "dtype": "float32",
        "eos_token_ids": (),
    }
    return ModelConfig(**{**defaults, **values})


def both(config: ModelConfig, device: torch.device) -> tuple[TritonOperations, TorchOperations]:
    """The operations under test, and the reference."""
    rotary = RotaryEmbedding(config, config.max_position, device)
    return TritonOperations(config, rotary), TorchOperations(config, rotary)


def needs_fp8(device: torch.device) -> None:
    """Skips the test on a GPU without eight-bit floats."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        pytest.skip("this GPU has no eight-bit floats")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_gate_and_sum(dtype: torch.dtype, device: torch.device) -> None:
    """Sizes are not powers of two; the sum overwrites the residual."""
    triton, plain = both(make_config(), device)
    x, residual = torch.randn(2, 5, 48).to(device, dtype).unbind()
    weight = torch.randn(48).to(device, dtype)
    close(triton.norm(x, weight), plain.norm(x, weight))
    expected = plain.add_norm(x, residual, weight)
    normed, total = triton.add_norm(x, residual, weight)
    close(normed, expected[0])
    close(total, expected[1])
    gate_up = torch.randn(3, 2 * 1030).to(device, dtype) * 4
    close(triton.gate(gate_up), plain.gate(gate_up))


def test_quantised_rows(device: torch.device) -> None:
    """Equal scales and almost always equal, nearest values; rows of zeros stay zeros."""
    needs_fp8(device)
    triton, plain = both(make_config(), device)
    x = (torch.randn(4, 80) * torch.tensor([[1e-3], [1.0], [300.0], [0.0]])).to(device)
    rows, scales = triton.quantise(x)
    expected = plain.quantise(x)
    close(scales, expected.scales)
    assert rows.dtype is expected.rows.dtype
    same = rows.float() == expected.rows.float()
    assert same.float().mean() > 0.99
    error = (rows.float() * scales - x).abs()
    assert (error <= x.abs() / 16 + scales * 2**-9).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["plain", "biased", "fp8"])
def test_products(kind: str, dtype: torch.dtype, device: torch.device) -> None:
    """One row and several, with and without gate; sizes do not fill a tile."""
    if kind == "fp8":
        needs_fp8(device)
        if device.type == "cuda":
            dtype = torch.bfloat16  # its units sum up eight-bit products to fewer bits
    num_inputs, num_outputs = 2100, 2 * 11
    triton, plain = both(make_config(), device)
    values = (torch.randn(num_outputs, num_inputs) * num_inputs**-0.5).to(device, dtype)
    bias = torch.randn(num_outputs).to(device, dtype) if kind == "biased" else None
    matrix = wide = Linear(values, bias)
    if kind == "fp8":
        matrix = Fp8Linear(values)
        wide = Linear((matrix.weight.float() * matrix.scales.T).to(dtype))
    for num_rows in (1, 3):
        x = rounded = torch.randn(num_rows, num_inputs).to(device, dtype)
        if kind == "fp8":
            rows, scales = triton.quantise(x)
            rounded = (rows.float() * scales).to(dtype)
        for operations in (triton, triton.batch_invariant()):
            close(operations.multiply(x, matrix), plain.multiply(rounded, wide))
            close(operations.multiply_gate(x, matrix), plain.multiply_gate(rounded, wide))


@pytest.mark.parametrize("num_rows", [1, 40, 200])
def test_products_in_parts(
    num_rows: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel adds each part once, and resets its counters for the next call."""
    monkeypatch.setattr(product, "MAX_PART", 256)
    triton, plain = both(make_config(), device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    matrix = Linear((torch.randn(150, 700) / 26).to(device, dtype))
    for _ in range(2):
        x = torch.randn(num_rows, 700).to(device, dtype)
        close(triton.product(x, matrix), plain.multiply(x, matrix))


MIXED: list[Span] = [(0, 1), (70, 1), (15, 1), (0, 20), (130, 9), (30, 3)]


@pytest.mark.parametrize(
    ("spans", "block_size", "dtype", "values"),
    [
        (MIXED, 16, torch.float32, {}),
        (MIXED, 32, torch.bfloat16, {"head_dim": 80, "num_kv_heads": 1}),
        (MIXED, 16, torch.float32, {"sliding_window": 24, "qk_norm": True}),
        # A single stream with split keys, without and with a sliding window.
        ([(300, 1)], 16, torch.float32, {"num_heads": 7, "num_kv_heads": 1}),
        ([(300, 1)], 16, torch.float32, {"sliding_window": 200, "rotates": False}),
        ([(200, 40)], 16, torch.bfloat16, {"head_dim": 128, "num_heads": 2, "num_kv_heads": 2}),
        # Group sizes that are not powers of two, and heads that do not fill a tile.
        ([(5, 1), (0, 7)], 16, torch.float32, {"num_heads": 9, "num_kv_heads": 3}),
        # More heads in a group than rows in the smallest tile.
        ([(40, 1), (3, 2)], 16, torch.float32, {"num_heads": 20, "num_kv_heads": 1}),
        # Parts of 256 keys: split over programs, and all in one program.
        ([(300, 1)], 16, torch.float32, {"invariant": True}),
        ([(270, 1)] * 2 + [(280, 9)], 16, torch.float32, {"invariant": True, "num_heads": 8}),
        ([(300, 2)], 16, torch.bfloat16, {"invariant": True, "sliding_window": 30}),
    ],
)
def test_attention(
    spans: list[Span],
    block_size: int,
    dtype: torch.dtype,
    values: dict[str, Any],
    device: torch.device,
) -> None:
    """Equal outputs, and equal keys and values in the cache."""
    if device.type == "cuda":
        dtype = torch.bfloat16
    values = dict(values)
    rotates = values.pop("rotates", True)
    invariant = values.pop("invariant", False)
    config = make_config(**values)
    step = make_step(spans, block_size, num_blocks=60)
    inputs = make_inputs(step, block_size, device)
    size = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    qkv = torch.randn(len(step.token_ids), size).to(device, dtype)
    norms = None
    if config.qk_norm:
        first, second = torch.randn(2, config.head_dim).to(device, dtype).unbind()
        norms = (first, second)
    results = []
    for operations in both(config, device):
        cache = KVCache(config, 60, block_size, dtype, device)
        fill_cache(cache, 1)
        chosen = operations.batch_invariant() if invariant else operations
        attention = chosen.attention(inputs, cache)
        results.append((attention(qkv, 0, norms, rotates=rotates), *cache.layer(0)))
    for got, wanted in zip(*results, strict=True):
        close(got, wanted)


def test_slots_after_a_context_are_never_read(device: torch.device) -> None:
    """No value in a free slot or in another sequence's block affects a result."""
    config = make_config()
    triton, _ = both(config, device)
    step = make_step([(20, 1), (0, 5)], 16, num_blocks=6)
    cache = KVCache(config, 6, 16, torch.bfloat16, device)
    for stored in cache.layer(0):
        stored.fill_(torch.nan)
        for table, context in zip(step.block_tables, (21, 5), strict=True):
            for position in range(context):
                stored[table[position // 16] * 16 + position % 16] = 0.5
    attention = triton.attention(make_inputs(step, 16, device), cache)
    qkv = torch.randn(6, 8 * 16).to(device, torch.bfloat16)
    assert attention(qkv, 0, None, rotates=True).isfinite().all()


@pytest.mark.parametrize("in_order", [False, True])
def test_parts_without_keys_are_skipped(in_order: bool, device: torch.device) -> None:
    """Their memory may contain anything; a row with only empty parts is zero."""
    partial = torch.randn(2, 1, 3, 16).to(device)
    logarithms = torch.tensor([[[1.0, -torch.inf, 3.0]], [[-torch.inf] * 3]]).to(device)
    partial[:, :, 1] = torch.nan
    seen = torch.full((2, 1, 16), 7.0, device=device)
    combine(partial, logarithms, seen, in_order=in_order)
    close(seen[0, 0], (partial[0, 0, 0] + 4 * partial[0, 0, 2]) / 5)
    assert (seen[1] == 0).all()


def test_sampled_tokens_equal_torch(device: torch.device) -> None:
    """For many seeds; filtered tokens are never sampled, and a single one left always is."""
    keys = noise_keys(list(range(40)), [7] * 40, device)
    logits = (torch.randn(40, 5000) * 2).to(device)
    logits[::2, 1000:] = -torch.inf
    logits[3] = -torch.inf
    logits[3, 4321] = -5.0
    sampled = sample.gumbel_argmax(logits, keys)
    assert torch.equal(sampled, gumbel_argmax(logits, keys))
    assert sampled[3] == 4321
    assert len(set(sampled.tolist())) > 20


def close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    """Asserts equality within the type's tolerance."""
    assert got.dtype is wanted.dtype
    assert got.shape == wanted.shape
    tolerance = TOLERANCES[got.dtype]
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)
