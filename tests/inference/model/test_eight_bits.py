"""Eight-bit weights: accuracy, and devices that do not support them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from inference.engine.engine import Engine
from inference.engine.errors import ModelLoadError
from inference.model.config import ModelConfig, load_config
from inference.model.factory import weight_type
from inference.model.layers.linear import Fp8Linear, Linear
from inference.model.layers.quantise import quantise_rows
from inference.sampling.sampling_params import SamplingParams
from inference.scheduler.sequence import Sequence
from tests.inference.model.families import reference_logits
from tests.inference.model.test_parity import GREEDY, prompts, run
from tests.inference.sampled import plan_of

CUDA = torch.device("cuda")


@pytest.fixture
def config(model_folder: Callable[[str], Path]) -> ModelConfig:
    """The config of a small model."""
    return load_config(model_folder("llama-tied-gqa"))


def test_each_row_has_its_own_scale() -> None:
    """All rows have the same relative accuracy; a row of zeros stays zero."""
    x = torch.tensor([[1e-4, -5e-5], [200.0, 3.0], [0.0, 0.0]])
    rows, scales = quantise_rows(x)
    assert rows.dtype is torch.float8_e4m3fn
    assert scales.shape == (3, 1)
    back = rows.float() * scales
    # Three bits of mantissa: half of the last one is a sixteenth.
    assert ((back - x).abs() <= x.abs() / 16).all()
    torch.testing.assert_close(back.abs().amax(1), x.abs().amax(1))


def test_an_fp8_matrix_takes_a_byte_per_weight_and_is_close() -> None:
    """With a bias and without."""
    torch.manual_seed(0)
    weight, bias = torch.randn(48, 64).bfloat16(), torch.randn(48).bfloat16()
    x = torch.randn(5, 64).bfloat16()
    for each in (bias, None):
        linear = Fp8Linear(weight, each)
        assert linear.weight.element_size() == 1
        got, expected = linear(x), Linear(weight, each)(x)
        assert got.dtype is torch.bfloat16
        assert torch.cosine_similarity(got.float(), expected.float(), dim=-1).min() > 0.998


def test_a_model_in_fp8_is_close(make_engine: Callable[..., Engine], family: str) -> None:
    """Its logits have a cosine similarity of 0.98 to float32; batching changes no token."""
    engine = make_engine(family, dtype="fp8")
    assert engine.model_info.dtype == "fp8"
    [prompt] = prompts(40)
    logits = run_with_logits(engine, prompt)
    assert torch.cosine_similarity(logits, reference_logits(family, prompt)[-1], dim=0) > 0.98
    alone = run(engine, [prompt], 8)
    assert run(make_engine(family, dtype="fp8"), [prompt, prompt[:9]], 8)[:1] == alone


def run_with_logits(engine: Engine, prompt: list[int]) -> torch.Tensor:
    """The logits after a prompt."""
    sequence = Sequence("s", prompt, SamplingParams(max_tokens=1, **GREEDY))  # type: ignore[arg-type]
    assert engine._scheduler.block_manager.allocate(sequence)
    logits: torch.Tensor = engine.steps.runner.logits(plan_of([sequence]))[0]  # type: ignore[attr-defined]
    engine._scheduler.block_manager.free(sequence)
    return logits


def test_int8_is_rejected_on_a_gpu(config: ModelConfig) -> None:
    """Each step would unpack all weights; the message recommends fp8."""
    with pytest.raises(ModelLoadError, match=r"INFERENCE_DTYPE is int8.*INFERENCE_DTYPE=fp8"):
        weight_type("int8", config, CUDA)


@pytest.mark.parametrize(("capability", "fits"), [((8, 0), False), ((8, 9), True), ((9, 0), True)])
def test_fp8_is_rejected_on_gpus_without_it(
    config: ModelConfig, capability: tuple[int, int], fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the variable and the compute capability."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    if fits:
        assert weight_type("fp8", config, CUDA) == "fp8"
    else:
        with pytest.raises(
            ModelLoadError, match=r"INFERENCE_DTYPE is fp8.*is 8\.0; fp8 requires 8\.9"
        ):
            weight_type("fp8", config, CUDA)


def test_fp8_needs_multiples_of_16(config: ModelConfig) -> None:
    """A GPU's product needs them; the check also runs on a CPU, for models tried there first."""
    odd: dict[str, Any] = {"hidden_size": 72, "intermediate_size": 100}
    with pytest.raises(ModelLoadError, match=r"hidden_size 72, intermediate_size 100.* of 16"):
        weight_type("fp8", replace(config, **odd), torch.device("cpu"))


def test_unavailable_kernels_are_named(make_engine: Callable[..., Engine]) -> None:
    """INFERENCE_KERNELS=triton needs a GPU."""
    with pytest.raises(ModelLoadError, match="INFERENCE_KERNELS is triton, but"):
        make_engine(kernels="triton")
