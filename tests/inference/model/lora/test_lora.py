"""LoRA adapters in an engine: their tokens, the prefix cache, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from inference.engine import adapters
from inference.engine.adapters import LoraModule
from inference.engine.engine import Engine
from inference.engine.errors import (
    AdapterNotFound,
    AdaptersDisabled,
    EngineError,
    InvalidAdapter,
    Overloaded,
)
from inference.model.loading import EngineOptions, load_engine
from inference.model.lora.files import read_adapter
from inference.sampling.sampling_params import SamplingParams
from inference.scheduler.sequence import Sequence
from tests.inference.model.lora.adapters import merge, write_adapter
from tests.inference.model.native import use_kernels
from tests.inference.model.test_parity import GREEDY, prompts, run

NUM_TOKENS = 8


def engine_of(folder: Path, **options: Any) -> Engine:
    """An engine with torch's operations in float32."""
    defaults = EngineOptions.defaults(folder, "base")
    return load_engine(
        replace(
            defaults,
            **{"device": "cpu", "dtype": "float32", "kv_cache_tokens": 1024, "threads": 1},
            **options,
        )
    )


def run_mixed(engine: Engine, batch: list[tuple[str, list[int]]]) -> list[Sequence]:
    """Runs prompts with adapters by name, "" for none, in one batch."""
    params = SamplingParams(max_tokens=NUM_TOKENS, **GREEDY)  # type: ignore[arg-type]
    sequences = [
        Sequence(str(number), prompt, params, adapter=engine.adapters.get(name))
        for number, (name, prompt) in enumerate(batch)
    ]
    for sequence in sequences:
        engine.add(sequence)
    while engine.has_work:
        engine.step()
    engine.check_when_idle()
    return sequences


def completion(sequence: Sequence) -> list[int]:
    return list(sequence.token_ids[sequence.num_prompt_tokens :])


@pytest.mark.parametrize(
    ("family", "kernels"),
    [
        *((family, "torch") for family in ("llama-tied-gqa", "phi3", "glm")),
        *((family, "avx2") for family in ("llama-tied-gqa", "phi3", "glm", "qwen3")),
        ("phi3", "avx512"),
    ],
)
def test_a_mixed_batch_equals_merged_weights(
    family: str,
    kernels: str,
    model_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two adapters and the base model in one batch, token for token; merged projections too."""
    base = model_folder(family)
    kernels = use_kernels(kernels, monkeypatch)
    paths = [write_adapter(base, tmp_path / name, seed) for seed, name in enumerate("ab")]
    modules = tuple(LoraModule(path.name, str(path)) for path in paths)
    engine = engine_of(base, lora_modules=modules, max_loras=2, kernels=kernels)
    assert ("Native" in type(engine.steps.runner._model).__name__) == (kernels == "native")
    batch = prompts(33, 7)
    expected = {"": run(engine_of(base, kernels="torch"), batch, NUM_TOKENS)}
    for path in paths:
        merged = merge(base, path, tmp_path / f"merged-{path.name}")
        expected[path.name] = run(engine_of(merged, kernels="torch"), batch, NUM_TOKENS)
    assert expected[""] != expected["a"] != expected["b"] != expected[""]
    # The same prompts: blocks that another adapter has cached must not be used.
    for names in (("a", "", "b"), ("b", "a", "")):
        mixed = [(name, prompt) for name in names for prompt in batch]
        found = [completion(each) for each in run_mixed(engine, mixed)]
        assert found == [tokens for name in names for tokens in expected[name]]


def test_the_prefix_cache_is_separate_by_adapter(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """A prompt is cached for its own adapter; also by the content, not by the name."""
    base = model_folder("qwen3")
    path = write_adapter(base, tmp_path / "a", 0)
    engine = engine_of(base, lora_modules=(LoraModule("a", str(path)),), allow_runtime_lora=True)
    [prompt] = prompts(50)
    cached = [run_mixed(engine, [(name, prompt)])[0].num_cached_tokens for name in ("", "a", "a")]
    assert cached == [0, 0, 48]
    engine.adapters.unload("a")
    engine.adapters.load_now([LoraModule("a", str(write_adapter(base, tmp_path / "b", 1)))])
    assert run_mixed(engine, [("a", prompt)])[0].num_cached_tokens == 0


async def test_unloading_does_not_end_running_sequences(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """A sequence keeps its adapter; further ones are refused by name."""
    base = model_folder("qwen3")
    path = write_adapter(base, tmp_path / "a", 0)
    engine = engine_of(base, allow_runtime_lora=True, max_loras=1)
    info = await engine.adapters.load("a", str(path))
    [prompt] = prompts(20)
    expected = completion(run_mixed(engine, [("a", prompt)])[0])
    params = SamplingParams(max_tokens=NUM_TOKENS, **GREEDY)  # type: ignore[arg-type]
    sequence = Sequence("s", prompt, params, adapter=engine.adapters.get("a"))
    engine.add(sequence)
    engine.step()
    assert engine.load().running_adapters == ("a",)
    engine.adapters.unload("a")
    while engine.has_work:
        engine.step()
    assert completion(sequence) == expected
    with pytest.raises(AdapterNotFound, match="no LoRA adapter 'a' is loaded"):
        engine.adapters.get("a")
    assert (await engine.adapters.load("a", str(path))) == info


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type must be 'LORA'. Given: 'IA3'"),
        ({"use_dora": True}, "use_dora must be False. Given: True"),
        ({"bias": "all"}, "bias must be 'none'. Given: 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save must be empty.*Given: 'lm_head'"),
        ({"r": None}, "r is missing"),
    ],
)
def test_what_an_adapter_cannot_have_is_named(
    config: dict[str, Any], message: str, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """The file, the field and the value."""
    path = write_adapter(model_folder("qwen3"), tmp_path / "a", 0, **config)
    engine = loader(model_folder)
    with pytest.raises(InvalidAdapter, match=rf"adapter_config\.json: {message}"):
        engine.adapters.load_now([LoraModule("a", str(path))])


def test_alternatives_of_an_alpha_pattern_match_whole_names(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """Alternatives match whole names, as in PEFT."""
    base = model_folder("qwen3")
    usual = read_adapter(write_adapter(base, tmp_path / "usual", 0), max_rank=16)
    given = write_adapter(base, tmp_path / "a", 0, alpha_pattern={"k_proj|o_proj": 24.0})
    doubled = read_adapter(given, max_rank=16)
    for module, up in usual.ups.items():
        factor = 2 if module.endswith(("k_proj", "o_proj")) else 1
        assert torch.equal(doubled.ups[module], factor * up)


def loader(model_folder: Callable[[str], Path], **options: Any) -> Engine:
    """An engine that may load adapters."""
    return engine_of(model_folder("qwen3"), allow_runtime_lora=True, **options)


async def test_bad_adapters_and_names_are_refused(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """Another model's adapter, a high rank, a taken name, no folder, too many."""
    base = model_folder("qwen3")
    good = str(write_adapter(base, tmp_path / "a", 0))
    other = str(write_adapter(model_folder("llama-tied-gqa"), tmp_path / "other", 0))
    moe = str(write_adapter(model_folder("mixtral"), tmp_path / "moe", 0))
    (tmp_path / "empty").mkdir()
    engine = loader(model_folder, max_loras=1, max_lora_rank=4)
    cases: list[tuple[str, str, type[EngineError], str]] = [
        ("x", other, InvalidAdapter, r"q_proj must have 64 inputs and 128 outputs. Given: 64 and"),
        ("x", moe, InvalidAdapter, "inputs"),
        ("x", str(tmp_path / "empty"), InvalidAdapter, "adapter_config.json is missing"),
        ("x", str(tmp_path / "none"), InvalidAdapter, "lora_path: .*neither a folder"),
        ("x", "a" * 4096, InvalidAdapter, "lora_path 'aaa.*cannot be read: File name too long"),
        ("base", good, InvalidAdapter, "lora_name 'base' is already served"),
        ("", good, InvalidAdapter, "1 to 256 characters. Given: 0"),
    ]
    for name, path, error, message in cases:
        with pytest.raises(error, match=message):
            await engine.adapters.load(name, path)
    await engine.adapters.load("a", good)
    with pytest.raises(InvalidAdapter, match="'a' is already served"):
        await engine.adapters.load("a", good)
    with pytest.raises(Overloaded, match="at most 1 LoRA adapters"):
        await engine.adapters.load("b", good)
    low = loader(model_folder, max_lora_rank=3)
    with pytest.raises(InvalidAdapter, match=r"rank must be at most 3 .*Given: 4"):
        await low.adapters.load("a", good)


async def test_a_copy_must_be_equal_and_not_just_unloaded(
    model_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else an adapter that is being unloaded everywhere would return from the last replica."""
    path = str(write_adapter(model_folder("qwen3"), tmp_path / "a", 0))
    loaded = loader(model_folder, max_loras=2).adapters
    with pytest.raises(InvalidAdapter, match="has other files here"):
        await loaded.load("a", path, "0b")
    info = await loaded.load("a", path)
    assert not info.is_of_settings
    loaded.unload("a")
    with pytest.raises(InvalidAdapter, match="'a' was unloaded less than 60 s ago"):
        await loaded.load("a", path, info.model_sha256)
    assert (await loaded.load("b", path, info.model_sha256)).model_sha256 == info.model_sha256
    await loaded.load("a", path)
    loaded.unload("a")
    monkeypatch.setattr(adapters, "UNLOADED_SECONDS", 0.0)
    assert (await loaded.load("a", path, info.model_sha256)).name == "a"


async def test_loading_is_off_unless_allowed(model_folder: Callable[[str], Path]) -> None:
    """The message names the setting."""
    engine = engine_of(model_folder("qwen3"))
    for call in (engine.adapters.load("a", "b"),):
        with pytest.raises(AdaptersDisabled, match="INFERENCE_ALLOW_RUNTIME_LORA allows it"):
            await call
    with pytest.raises(AdaptersDisabled, match="INFERENCE_ALLOW_RUNTIME_LORA allows it"):
        engine.adapters.unload("a")
    assert json.dumps([each.name for each in engine.adapters.infos]) == "[]"


@pytest.mark.parametrize(
    ("shapes", "pattern", "message"),
    [
        (((), (8, 1)), {}, "matrices of .* do not match"),
        (((0, 8), (8, 0)), {}, "matrices of .* do not match"),
        (((4, 8), (8, 4)), {"(": 1.0}, r"alpha_pattern must have regular expressions. Given: '\('"),
    ],
)
def test_damaged_matrices_and_patterns_are_refused(
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
    pattern: dict[str, float],
    message: str,
    tmp_path: Path,
) -> None:
    """They are the adapter's fault, not an internal error."""
    name = "base_model.model.model.layers.0.mlp.down_proj"
    tensors = {
        f"{name}.lora_{side}.weight": torch.zeros(shape)
        for side, shape in zip("AB", shapes, strict=True)
    }
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    content = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "alpha_pattern": pattern}
    (tmp_path / "adapter_config.json").write_text(json.dumps(content))
    with pytest.raises(InvalidAdapter, match=message):
        read_adapter(tmp_path, 8)
