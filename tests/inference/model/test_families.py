"""Each family of the table against transformers, and what its table row decides."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from inference.engine.engine import Engine
from inference.engine.errors import ModelLoadError
from inference.model.config import load_config
from inference.model.families import FAMILIES
from inference.model.loading import EngineOptions, load_engine
from inference.model.native import decoder, library
from inference.sampling.sampling_params import SamplingParams
from inference.scheduler.sequence import Sequence
from tests.inference.model.families import (
    TABLE_FAMILIES,
    reference,
    reference_greedy,
    reference_logits,
)
from tests.inference.model.test_parity import GREEDY, prompts, run
from tests.inference.sampled import plan_of

NATIVE = ("phi3", "granite", "glm", "llama-yarn")
"""Those that differ by names, orders and multipliers only, which loading takes care of."""

KERNELS = [
    *((family, "torch") for family in TABLE_FAMILIES),
    *((family, "native") for family in NATIVE),
]
LENGTH = 41
"""More than every window, and more than the original context of the longrope model."""


@pytest.mark.parametrize(("family", "kernels"), KERNELS)
def test_a_family_computes_what_transformers_does(
    family: str, kernels: str, make_engine: Callable[..., Engine]
) -> None:
    """Logits after a prompt, and greedy tokens of it in a batch with a shorter one."""
    if kernels == "native" and decoder_unavailable():
        pytest.skip("NOTHING NATIVE IS TESTED")
    engine = make_engine(family, kernels=kernels)
    long, short = prompts(LENGTH, 35)
    difference = (logits_of(engine, long) - reference_logits(family, long)[-1]).abs().max()
    assert difference <= 1e-4
    expected = [reference_greedy(family, prompt, 4) for prompt in (long, short)]
    assert run(engine, [long, short], 4) == expected


def decoder_unavailable() -> bool:
    """Whether the native library cannot run on this machine."""
    try:
        library.lanes()
    except library.Unavailable:
        return True
    return False


def logits_of(engine: Engine, prompt: list[int]) -> torch.Tensor:
    """The logits after a prompt."""
    sequence = Sequence("s", prompt, SamplingParams(max_tokens=1, **GREEDY))  # type: ignore[arg-type]
    assert engine._scheduler.block_manager.allocate(sequence)
    sequence.num_computed_tokens = 0
    logits: torch.Tensor = engine.steps.runner.logits(plan_of([sequence]))[0]  # type: ignore[attr-defined]
    engine._scheduler.block_manager.free(sequence)
    return logits


@pytest.mark.parametrize(
    "family", sorted(set(TABLE_FAMILIES) - set(NATIVE) - {"phi4-mini-longrope"})
)
def test_the_native_decoder_refuses_what_it_does_not_compute(
    family: str, model_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the feature's name, so that the log says why torch computes the model."""
    monkeypatch.setattr(library, "lanes", lambda: 8)
    reason = decoder.unsupported_reason(load_config(model_folder(family)), 16)
    assert reason is not None
    assert reason.startswith("the model has ")


def test_short_contexts_use_the_short_factors(make_engine: Callable[..., Engine]) -> None:
    """A longrope model served for its original context is the model that was trained for it."""
    [prompt] = prompts(30)
    engine = make_engine("phi4-mini-longrope", max_context=32)
    expected = reference_logits("phi4-mini-longrope", prompt)[-1]
    assert (logits_of(engine, prompt) - expected).abs().max() <= 1e-4


def test_the_text_model_of_a_multimodal_checkpoint_is_served(
    model_folder: Callable[[str], Path], tmp_path: Path, make_engine: Callable[..., Engine]
) -> None:
    """Gemma 3 from 4B on: nested configuration, prefixed names, other tensors ignored."""
    folder = model_folder("gemma3")
    weights = {
        f"language_model.{name}": tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    weights["vision_tower.x.weight"] = torch.zeros(2)
    save_file(weights, tmp_path / "model.safetensors")
    text = json.loads((folder / "config.json").read_text())
    whole = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    shutil.copy(folder / "generation_config.json", tmp_path)
    [prompt] = prompts(LENGTH)
    single = make_engine("gemma3")
    options = EngineOptions.defaults(tmp_path, "m")
    options = replace(options, device="cpu", dtype="float32", kv_cache_tokens=512, threads=1)
    assert torch.equal(logits_of(load_engine(options), prompt), logits_of(single, prompt))


def test_published_files_need_not_repeat_defaults(tmp_path: Path) -> None:
    """google/gemma-3-4b-it's text_config has six fields; the table has the others."""
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    content = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "eos_token_id": [1, 106],
        "text_config": text,
        "torch_dtype": "bfloat16",
    }
    (tmp_path / "config.json").write_text(json.dumps(content))
    config = load_config(tmp_path)
    assert (config.head_dim, config.num_heads, config.num_kv_heads) == (256, 8, 4)
    assert (config.rope_theta, config.local_rope_theta) == (1e6, 1e4)
    assert sorted(config.full_layers) == [5, 11, 17, 23, 29]
    assert config.eos_token_ids == (1, 106)
    assert config.dtype == "bfloat16"


def test_a_refused_architecture_names_the_supported_ones(tmp_path: Path) -> None:
    """All of the table."""
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["GPT2LMHeadModel"]}))
    with pytest.raises(ModelLoadError) as refused:
        load_config(tmp_path)
    assert all(name in str(refused.value) for name in FAMILIES)


def test_all_references_have_a_row() -> None:
    """Every family of the table is compared, except for the multi-modal twin of Gemma 3."""
    compared = {type(reference(family)).__name__ for family in TABLE_FAMILIES}
    others = ("Llama", "Mistral", "Qwen2", "Qwen3", "SmolLM3")
    compared |= {f"{name}ForCausalLM" for name in others}
    assert compared | {"Gemma3ForConditionalGeneration"} == set(FAMILIES)
