"""Weights and configuration of GGUF files, against the models that the files were made of."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from huggingface_hub import constants

from inference.engine.errors import ModelLoadError
from inference.model.config import load_config
from inference.model.loading import EngineOptions, load_engine
from inference.model.weights.gguf_blocks import bits_of, grouped
from inference.model.weights.gguf_weights import GgufWeights
from inference.model.weights.weights import open_weights
from inference.sampling.sampling_params import SamplingParams
from inference.scheduler.sequence import Sequence
from mesh.hub.model_folder import ModelNotFoundError
from mesh.hub.model_folder import model_folder as folder_of
from tests.gguf_files import byte_vocabulary, write_gguf
from tests.inference.model.families import VOCAB_SIZE, reference, reference_greedy

FAMILIES = [
    *("llama-tied-gqa", "llama-untied-mha", "qwen2", "qwen3", "smollm3"),
    *("gemma", "gemma2", "gemma3", "phi3", "phi4-mini-longrope"),
]
"""One for each architecture and each way to store its output matrix."""

HAS_OTHER_SCALE = ("gemma2", "gemma3")
"""The references' scale of scores is not in the files: llama.cpp derives it."""

QUANTISED = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16"]
K_QUANTS = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL"]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps the derived files out of the user's cache."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def make_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes the model of a family to a GGUF file."""

    def make(family: str, **arguments: object) -> Path:
        path = tmp_path / "model.gguf"
        write_gguf(path, reference(family), byte_vocabulary(VOCAB_SIZE), **arguments)  # type: ignore[arg-type]
        return path

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_is_that_of_the_model(family: str, make_file: Callable[..., Path]) -> None:
    """By transformers' names, with the rows of q and k in transformers' order; none is left."""
    weights = GgufWeights([make_file(family)])
    for name, expected in reference(family).state_dict().items():
        if name in weights:
            found = weights.take(name, tuple(expected.shape))
            # Gemma's files have the weights of norms with one added, which rounds them.
            rounding = 1e-6 if family.startswith("gemma") and "norm" in name else 0.0
            torch.testing.assert_close(found, expected, rtol=0, atol=rounding)
        else:
            assert name == "lm_head.weight"
    assert weights.unused == []


@pytest.mark.parametrize(
    "family", [each for each in FAMILIES if each not in ("smollm3", *HAS_OTHER_SCALE)]
)
def test_the_engine_continues_a_prompt_like_transformers(
    family: str, make_file: Callable[..., Path]
) -> None:
    """Greedy tokens of an engine that has only the file.

    Not SmolLM3: files do not say which layers have no rope, and that family's are not the usual.
    """
    folder = folder_of(str(make_file(family)), ())
    options = replace(
        EngineOptions.defaults(folder, "m"), dtype="float32", kv_cache_tokens=256, threads=1
    )
    engine = load_engine(options)
    prompt = list(range(3, 20))
    params = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)
    sequence = Sequence("s", prompt, params)
    engine.add(sequence)
    while engine.has_work:
        engine.step()
    assert list(sequence.token_ids)[-12:] == reference_greedy(family, prompt, 12)


@pytest.mark.parametrize("family", HAS_OTHER_SCALE)
def test_gemma_s_metadata_is_its_configuration(
    family: str, make_file: Callable[..., Path], model_folder: Callable[[str], Path]
) -> None:
    """Windows, soft caps and both rotary embeddings; the scale is that of the published sizes."""
    found = load_config(folder_of(str(make_file(family)), ()))
    expected = load_config(model_folder(family))
    same = {"dtype": "", "default_sampling": {}, "eos_token_ids": (), "attention_scale": None}
    rounded = {"attention_softcap": found.attention_softcap, "rms_norm_eps": found.rms_norm_eps}
    assert replace(found, **same) == replace(expected, **same, **rounded)  # type: ignore[arg-type]
    assert found.attention_scale == found.head_dim**-0.5


def test_the_derived_files_need_no_writable_cache(
    make_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In a container with a read-only home they are in the temporary folder."""
    (tmp_path / "temporary").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    folder = folder_of(str(make_file("qwen2")), ())
    assert folder.parent == tmp_path / "temporary" / "weir-gguf"


@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised_weights_are_close(kind: str, make_file: Callable[..., Path]) -> None:
    """Of each type that the package can write, within the type's own error."""
    family = "llama-tied-gqa"
    path = make_file(family, kind=gguf.GGMLQuantizationType[kind])
    name = "model.layers.1.self_attn.q_proj.weight"
    expected = reference(family).state_dict()[name]
    found = GgufWeights([path]).take(name, tuple(expected.shape))
    error = (found - expected).norm() / expected.norm()
    assert 0 < error < {"F16": 1e-3, "BF16": 4e-3, "Q8_0": 1e-2}.get(kind, 0.15)


@pytest.mark.parametrize("kind", K_QUANTS)
def test_every_type_can_be_expanded(kind: str) -> None:
    """Also of the types that only llama.cpp writes; their blocks are random here."""
    quantised = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[quantised]
    data = np.random.default_rng(0).integers(0, 60, (3, size), dtype=np.uint8)
    assert gguf.quants.dequantize(data, quantised).shape == (3, block)


HALVES = {"Q4_0": 1, "Q4_1": 2, "Q5_0": 1, "Q5_1": 2, "Q8_0": 1, "IQ4_NL": 1, "Q4_K": 2, "Q5_K": 2}
"""Types whose integers and scales are kept, and the scales at the beginning of a block."""


@pytest.mark.parametrize("kind", HALVES)
def test_integers_and_scales_are_those_of_the_file(kind: str) -> None:
    """The weights equal those of llama.cpp's package, of blocks with random bits."""
    quantised = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[quantised]
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (6, size), dtype=np.uint8)
    scales = rng.normal(size=(6, HALVES[kind])).astype(np.float16)
    blocks[:, : 2 * HALVES[kind]] = scales.view(np.uint8)
    weight = grouped(blocks.reshape(3, 2 * size), quantised)
    assert weight is not None
    assert weight.shape == (3, 2 * block)
    assert weight.bits == bits_of(quantised) == (4 if kind.startswith("Q4") else 8)
    expected = torch.from_numpy(gguf.quants.dequantize(blocks.reshape(3, -1), quantised))
    torch.testing.assert_close(weight.expand(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q6_K"])
def test_other_quantised_types_are_expanded(kind: str) -> None:
    """Their scales are for 16 weights; eight bits represent them after another rounding."""
    quantised = gguf.GGMLQuantizationType[kind]
    size = gguf.GGML_QUANT_SIZES[quantised][1]
    assert grouped(np.zeros((2, size), dtype=np.uint8), quantised) is None
    assert bits_of(quantised) == 8
    assert bits_of(gguf.GGMLQuantizationType.BF16) is None


def test_kept_rows_are_in_transformers_order(make_file: Callable[..., Path]) -> None:
    """The same as those of the expanded tensor."""
    path = make_file("llama-tied-gqa", kind=gguf.GGMLQuantizationType.Q4_1)
    weights = GgufWeights([path])
    assert weights.stored_bits == 4
    for name, shape in (("self_attn.k_proj", (32, 64)), ("mlp.down_proj", (64, 96))):
        kept = weights.take_grouped(f"model.layers.1.{name}.weight", shape)
        assert kept is not None
        expanded = weights.take(f"model.layers.1.{name}.weight", shape)
        torch.testing.assert_close(kept.expand(), expanded, rtol=1e-6, atol=1e-6)


def test_the_configuration_is_that_of_the_model(
    make_file: Callable[..., Path], tmp_path: Path
) -> None:
    """All that decides the tokens; the control token <|im_end|> ends a generation."""
    folder = folder_of(str(make_file("qwen3")), ())
    reference("qwen3").save_pretrained(tmp_path / "saved")
    found, expected = load_config(folder), load_config(tmp_path / "saved")
    assert replace(found, eos_token_ids=(), dtype="", default_sampling={}) == replace(
        expected, eos_token_ids=(), dtype="", rms_norm_eps=found.rms_norm_eps
    )
    assert found.eos_token_ids == (VOCAB_SIZE - 1,)


def test_default_sampling_is_that_of_the_file_or_of_llama_cpp(
    make_file: Callable[..., Path],
) -> None:
    """Requests that set nothing else get the text that the file's users know."""
    folder = folder_of(str(make_file("qwen3", changes={"general.sampling.temp": 0.25})), ())
    expected = {"temperature": 0.25, "top_k": 40, "top_p": 0.95, "min_p": 0.05}
    assert load_config(folder).default_sampling == {**expected, "repetition_penalty": 1.0}


def test_split_files_are_one_model(make_file: Callable[..., Path], tmp_path: Path) -> None:
    """The tensors of all parts; a missing part is named."""
    path = make_file("llama-tied-gqa")
    (tmp_path / "parts").mkdir()
    first, second = (tmp_path / "parts" / f"m-0000{n}-of-00002.gguf" for n in (1, 2))
    shutil.copy(path, first)
    with pytest.raises(ModelNotFoundError, match=r"m-00002-of-00002\.gguf is missing.*2 parts"):
        folder_of(str(first), ())
    write_gguf(second, reference("qwen3"), byte_vocabulary(VOCAB_SIZE))
    folder = folder_of(str(first), ())
    assert {each.name for each in folder.glob("*.gguf")} == {first.name, second.name}
    assert "model.layers.0.self_attn.q_norm.weight" in open_weights(folder)


def test_a_folder_with_one_file_is_that_model(make_file: Callable[..., Path]) -> None:
    """The second time, the folder of the first is used."""
    folder = folder_of(str(make_file("qwen2").parent), ())
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["Qwen2ForCausalLM"]
    changed = (folder / "config.json").stat().st_mtime_ns
    assert folder_of(str(next(folder.glob("*.gguf")).resolve()), ()) == folder
    assert (folder / "config.json").stat().st_mtime_ns == changed


def test_several_models_in_a_folder_are_refused(make_file: Callable[..., Path]) -> None:
    """With their names."""
    path = make_file("qwen2")
    shutil.copy(path, path.with_name("other.gguf"))
    with pytest.raises(ModelNotFoundError, match=r"name one of them: model\.gguf, other\.gguf"):
        folder_of(str(path.parent), ())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general.architecture": "rwkv7"}, "architecture 'rwkv7' is not supported; .* llama, q"),
        ({"tokenizer.ggml.pre": "odd"}, "pre-tokenizer 'odd' .* is not supported; .* qwen2"),
        ({"tokenizer.ggml.model": "rwkv"}, "tokenizer 'rwkv' is not supported; .* gpt2, llama"),
        ({"llama.context_length": None}, r"metadata llama\.context_length is missing"),
        ({"llama.rope.scaling.type": "yarn"}, "rope scaling 'yarn' is not supported"),
        ({"tokenizer.ggml.token_type": [1, 1]}, "one entry for each of the 199 tokens, has 2"),
    ],
)
def test_what_is_not_supported_is_named(
    changes: dict[str, object], message: str, make_file: Callable[..., Path]
) -> None:
    """The key, its value, and the supported values."""
    path = make_file("llama-tied-gqa", changes=changes)
    with pytest.raises(ModelNotFoundError, match=message):
        folder_of(str(path), ())


@pytest.mark.parametrize("size", [0, 3, 64, 5000])
def test_a_file_that_is_cut_off_is_refused(size: int, make_file: Callable[..., Path]) -> None:
    """With one line that names it."""
    path = make_file("llama-tied-gqa")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ModelNotFoundError, match=r"model\.gguf is not a valid GGUF file"):
        folder_of(str(path), ())


def test_a_tensor_of_another_shape_is_refused(make_file: Callable[..., Path]) -> None:
    """By its name in the file."""
    weights = GgufWeights([make_file("llama-tied-gqa")])
    with pytest.raises(ModelLoadError, match=r"blk\.0\.attn_q\.weight must have shape \[1, 2\]"):
        weights.take("model.layers.0.self_attn.q_proj.weight", (1, 2))
    with pytest.raises(ModelLoadError, match=r"blk\.9\.attn_q\.weight is missing"):
        weights.take("model.layers.9.self_attn.q_proj.weight", (1, 2))
