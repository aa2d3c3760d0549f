"""Loading a model's folder: config layouts, shards, unused tensors, and invalid files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from inference.engine.errors import ModelLoadError
from inference.model.config import load_config
from inference.model.loading import EngineOptions, load_engine
from tests.inference.model.families import VOCAB_SIZE, reference


@pytest.fixture
def folder(model_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of a small model's folder that a test can modify."""
    return Path(shutil.copytree(model_folder("llama-tied-gqa"), tmp_path / "model"))


def load(folder: Path, **options: Any) -> Any:
    """Loads an engine from the folder."""
    defaults = {
        "device": "cpu",
        "kv_cache_tokens": 256,
        "threads": torch.get_num_threads(),
        "num_speculative_tokens": 0,
    }
    return load_engine(replace(EngineOptions.defaults(folder, "m"), **{**defaults, **options}))


def change_config(folder: Path, file: str = "config.json", **values: Any) -> None:
    """Sets fields of a JSON file; None removes a field."""
    path = folder / file
    config = json.loads(path.read_text()) if path.exists() else {}
    config.update(values)
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def test_the_model_is_described(folder: Path) -> None:
    """Architecture, sizes and EOS ids are those of the files."""
    change_config(folder, "generation_config.json", eos_token_id=[7, 9])
    info = load(folder).model_info
    assert info.architecture == "LlamaForCausalLM"
    assert (info.vocab_size, info.max_context) == (VOCAB_SIZE, 512)
    assert info.eos_token_ids == (7, 9)
    assert info.num_parameters == reference("llama-tied-gqa").num_parameters()
    assert (info.dtype, info.device) == ("float32", "cpu")


def test_shards_are_read_by_their_index(folder: Path) -> None:
    """Tensors are read from all files of the index; an error names a missing file."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for number in range(3):
        file = f"model-0000{number + 1}-of-00003.safetensors"
        part = {name: tensors[name] for name in names[number::3]}
        save_file(part, folder / file)
        weight_map.update(dict.fromkeys(part, file))
    change_config(folder, "model.safetensors.index.json", weight_map=weight_map)
    assert load(folder).model_info.num_parameters > 0
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"model-00002-of-00003\.safetensors is missing"):
        load(folder)


def test_both_layouts_of_the_config_are_read(folder: Path) -> None:
    """transformers 4: rope_theta, rope_scaling, torch_dtype; 5: rope_parameters, dtype."""
    scaling = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    change_config(
        folder,
        rope_parameters=None,
        dtype=None,
        rope_theta=500_000.0,
        rope_scaling={"rope_type": "llama3", **scaling},
        torch_dtype="bfloat16",
    )
    old = load_config(folder)
    change_config(
        folder,
        rope_theta=None,
        rope_scaling=None,
        torch_dtype=None,
        rope_parameters={"rope_type": "llama3", "rope_theta": 500_000.0, **scaling},
        dtype="bfloat16",
    )
    assert load_config(folder) == old
    assert (old.rope_theta, old.dtype) == (500_000.0, "bfloat16")
    assert old.rope_scaling is not None
    assert old.rope_scaling.factor == 8.0


def test_sampling_defaults_out_of_bounds_are_ignored_with_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A default that no request may send must not become the default of every request."""
    change_config(
        folder, "generation_config.json", do_sample=True, temperature=2.5, top_p=0.9, top_k="all"
    )
    assert load_config(folder).default_sampling == {"top_p": 0.9}
    reasons = [vars(record)["reason"] for record in caplog.records]
    assert reasons == ["temperature must be between 0 and 2", "top_k must be at least 0"]


@pytest.mark.parametrize(("eos", "expected"), [(3, (3,)), ([3, 4], (3, 4)), (None, ())])
def test_eos_ids_are_one_several_or_none(folder: Path, eos: Any, expected: tuple[int, ...]) -> None:
    """Without generation_config.json the ids come from config.json."""
    (folder / "generation_config.json").unlink(missing_ok=True)
    change_config(folder, eos_token_id=eos)
    assert load_config(folder).eos_token_ids == expected


@pytest.mark.parametrize(
    ("architecture", "values", "window"),
    [
        ("MistralForCausalLM", {}, 20),
        ("MistralForCausalLM", {"sliding_window": None}, None),
        ("Qwen2ForCausalLM", {}, None),
        ("Qwen2ForCausalLM", {"use_sliding_window": True}, None),
        ("Qwen2ForCausalLM", {"use_sliding_window": True, "max_window_layers": 0}, 20),
        ("Qwen3ForCausalLM", {"layer_types": ["full_attention"] * 3}, None),
        ("Qwen3ForCausalLM", {"layer_types": ["sliding_attention"] * 3}, 20),
        ("SmolLM3ForCausalLM", {"use_sliding_window": True}, None),
    ],
)
def test_a_window_is_on_all_layers_or_none(
    folder: Path, architecture: str, values: dict[str, Any], window: int | None
) -> None:
    """Each family configures it differently."""
    change_config(folder, architectures=[architecture], **{"sliding_window": 20, **values})
    config = load_config(folder)
    assert (config.sliding_window, config.full_layers) == (window, frozenset())


@pytest.mark.parametrize(
    ("architecture", "values", "full"),
    [
        ("Qwen2ForCausalLM", {"use_sliding_window": True, "max_window_layers": 1}, {0}),
        ("SmolLM3ForCausalLM", {"use_sliding_window": True, "no_rope_layers": [1, 0, 1]}, {0, 2}),
        ("Qwen2MoeForCausalLM", {"use_sliding_window": True, "num_experts": 2}, {1}),
        ("Gemma2ForCausalLM", {}, {1}),
        ("Gemma3ForCausalLM", {"sliding_window_pattern": 2}, {1}),
    ],
)
def test_a_window_is_on_some_layers(
    folder: Path, architecture: str, values: dict[str, Any], full: set[int]
) -> None:
    """The other layers see all tokens."""
    known = {"sliding_window": 20, "num_experts_per_tok": 1}
    change_config(folder, architectures=[architecture], **{**known, **values})
    config = load_config(folder)
    assert config.full_layers == full
    assert [config.window(layer) for layer in range(3)] == [
        None if layer in full else 20 for layer in range(3)
    ]


def test_every_fourth_layer_has_no_positions(folder: Path) -> None:
    """SmolLM3's default if the config has no list; its embeddings are tied by default."""
    change_config(
        folder,
        architectures=["SmolLM3ForCausalLM"],
        num_hidden_layers=9,
        tie_word_embeddings=None,
    )
    assert load_config(folder).no_rope_layers == {3, 7}
    assert load_config(folder).tie_word_embeddings
    change_config(folder, no_rope_layers=[1, 0, 1, 1, 1, 1, 0, 1, 1])
    assert load_config(folder).no_rope_layers == {1, 6}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel is not supported.*Llama"),
        ({"hidden_size": None}, "hidden_size"),
        ({"intermediate_size": 128}, r"must have shape \[128, 64\], has \[96, 64\]"),
        ({"num_hidden_layers": 4}, r"model\.layers\.3\..* is missing"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}}, "'dynamic' is not supp"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "'yarn' needs a factor"),
        ({"rope_parameters": {"rope_type": "su", "factor": 4.0}}, "short_factor with 8 numbers"),
        ({"layer_types": ["linear"], "sliding_window": 4}, "layer_types must be of"),
        ({"partial_rotary_factor": 0.2}, r"even number of dimensions of a head \(16\). Given: 3"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "'bitsandbytes' is not supp"),
    ],
)
def test_a_config_that_does_not_match_is_rejected(
    folder: Path, values: dict[str, Any], message: str
) -> None:
    """The message names the file, field or tensor."""
    change_config(folder, **values)
    with pytest.raises(ModelLoadError, match=message):
        load(folder)


def test_missing_files_are_named(folder: Path) -> None:
    """The errors name missing weights and a missing config."""
    (folder / "model.safetensors").rename(folder / "model.bin")
    with pytest.raises(ModelLoadError, match=r"no \*\.safetensors or \*\.gguf file"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ModelLoadError, match=r"config\.json is missing"):
        load(folder)


def test_a_damaged_file_is_named(folder: Path) -> None:
    """The error names a truncated file."""
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ModelLoadError, match=r"model\.safetensors is not a safetensors file"):
        load(folder)


def add_tensors(folder: Path, **tensors: torch.Tensor) -> None:
    """Adds tensors to the checkpoint; `__` in a name means a dot."""
    path = folder / "model.safetensors"
    named = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    save_file({**load_file(path), **named}, path)


def test_unused_tensors_are_logged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A warning names some of the tensors that the model does not use, and their number."""
    extra = {f"model__layers__0__adapter{n:02}": torch.zeros(2) for n in range(20)}
    add_tensors(folder, **extra)
    load(folder)
    [record] = [r for r in caplog.records if r.getMessage() == "checkpoint has unused tensors"]
    assert record.levelname == "WARNING"
    assert record.__dict__["num_tensors"] == 20
    named = record.__dict__["tensors"].split(", ")
    assert named == [f"model.layers.0.adapter{n:02}" for n in range(8)]


def test_redundant_tensors_are_not_logged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Rotary frequencies are computed from the config; a tied lm_head repeats the embeddings."""
    add_tensors(
        folder,
        model__layers__0__self_attn__rotary_emb__inv_freq=torch.zeros(8),
        lm_head__weight=torch.zeros(VOCAB_SIZE, 64),
    )
    load(folder)
    assert "checkpoint has unused tensors" not in caplog.messages


def test_a_context_beyond_the_model_is_rejected(folder: Path) -> None:
    """The setting can only reduce the model's context length."""
    assert load(folder, max_context=100).model_info.max_context == 100
    with pytest.raises(ModelLoadError, match=r"512 positions\. Given: 513"):
        load(folder, max_context=513)
