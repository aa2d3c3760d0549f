"""Models in four bits: quantised at load, or kept as their checkpoint has them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from inference.engine.engine import Engine
from inference.engine.errors import ModelLoadError
from inference.model.config import load_config
from inference.model.factory import weight_type
from inference.model.loading import EngineOptions, load_engine
from inference.model.native.decoder import NativeDecoder
from mesh.hub.model_folder import model_folder as folder_of
from tests.gguf_files import byte_vocabulary, write_gguf
from tests.inference.model.families import VOCAB_SIZE, reference, reference_logits
from tests.inference.model.native import KERNELS, use_kernels
from tests.inference.model.test_families import logits_of
from tests.inference.model.test_parity import prompts

FAMILY = "llama-tied-gqa"


def loaded(folder: Path, dtype: str = "auto", kernels: str = "native") -> Engine:
    """An engine on the CPU."""
    options = EngineOptions.defaults(folder, "m")
    return load_engine(
        replace(options, device="cpu", dtype=dtype, kernels=kernels, kv_cache_tokens=512, threads=1)
    )


@pytest.fixture
def make_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """The folder of a GGUF file with matrices of a type."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "cache"))

    def make(kind: str) -> Path:
        path = tmp_path / f"{kind}.gguf"
        quantised = gguf.GGMLQuantizationType[kind]
        write_gguf(path, reference(FAMILY), byte_vocabulary(VOCAB_SIZE), kind=quantised)
        return folder_of(str(path), ())

    return make


@pytest.mark.parametrize("kernels", KERNELS)
def test_int4_quantises_any_checkpoint(
    model_folder: Callable[[str], Path], kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its logits are close to those of float32."""
    engine = loaded(model_folder(FAMILY), "int4", use_kernels(kernels, monkeypatch))
    assert engine.model_info.dtype == "int4"
    [prompt] = prompts(40)
    expected = reference_logits(FAMILY, prompt)[-1]
    assert torch.cosine_similarity(logits_of(engine, prompt), expected, dim=0) > 0.97


@pytest.mark.parametrize("kernels", KERNELS[1:])
@pytest.mark.parametrize(
    ("kind", "dtype"), [("Q4_0", "int4"), ("Q4_1", "int4"), ("Q5_1", "int8"), ("Q8_0", "int8")]
)
def test_a_gguf_file_is_kept_in_its_bits(
    kind: str,
    dtype: str,
    kernels: str,
    make_file: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it computes differs from its expanded weights by the rounding of activations only."""
    use_kernels(kernels, monkeypatch)
    folder = make_file(kind)
    engine, expanded = loaded(folder), loaded(folder, "float32")
    assert engine.model_info.dtype == dtype
    agreed = 0
    for prompt in prompts(*range(20, 40)):
        found, expected = logits_of(engine, prompt), logits_of(expanded, prompt)
        assert torch.cosine_similarity(found, expected, dim=0) > 0.999
        agreed += int(found.argmax() == expected.argmax())
    assert agreed >= 19


def test_the_weights_take_the_memory_of_their_file(make_file: Callable[[str], Path]) -> None:
    """Not twice or eight times as much; the table of tied embeddings is in memory once."""
    for kind in ("Q4_0", "Q4_1", "Q8_0"):
        folder = make_file(kind)
        decoder = loaded(folder).steps.runner._model  # type: ignore[attr-defined]
        assert isinstance(decoder, NativeDecoder)
        [path] = folder.glob("*.gguf")
        tensors = gguf.GGUFReader(path).tensors
        stored = sum(int(each.n_bytes) for each in tensors if len(each.shape) == 2)
        padding = VOCAB_SIZE / (-(-VOCAB_SIZE // 32) * 32)
        assert decoder.weight_bytes * padding <= 1.01 * stored


@pytest.mark.parametrize("method", ["gptq", "compressed-tensors"])
def test_a_quantised_checkpoint_is_kept_in_its_bits(
    method: str, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """A matrix that is not quantised is rounded to eight bits; by torch, all are expanded."""
    folder = quantised_folder(model_folder(FAMILY), tmp_path, method)
    engine = loaded(folder)
    assert engine.model_info.dtype == ("int4" if method == "gptq" else "int8")
    expanded = loaded(folder, "auto", "torch")
    assert expanded.model_info.dtype == "float32"
    [prompt] = prompts(40)
    found, expected = logits_of(engine, prompt), logits_of(expanded, prompt)
    assert torch.cosine_similarity(found, expected, dim=0) > 0.999


def quantised_folder(source: Path, target: Path, method: str) -> Path:
    """The model with its layers' matrices as GPTQ of four bits or as int8 by output."""
    tensors = load_file(source / "model.safetensors")
    for name, weight in list(tensors.items()):
        stem, _, kind = name.rpartition(".")
        if kind != "weight" or weight.dim() != 2 or "layers" not in stem or "v_proj" in stem:
            continue
        del tensors[name]
        if method == "gptq":
            scales = weight.view(len(weight), -1, 32).abs().amax(2) / 7
            codes = (weight / scales.repeat_interleave(32, 1)).round().int().clamp(-8, 7) + 8
            words = codes.view(len(codes), -1, 8).long() << torch.arange(0, 32, 4)
            total = words.sum(-1)
            tensors[f"{stem}.qweight"] = total.where(total < 2**31, total - 2**32).int().t()
            zeros = torch.full((scales.shape[1], len(weight) // 8), 0x77777777)
            tensors[f"{stem}.qzeros"] = zeros.int()
            tensors[f"{stem}.scales"] = scales.t().half()
        else:
            scale = weight.abs().amax(1, keepdim=True) / 127
            tensors[f"{stem}.weight"] = (weight / scale).round().to(torch.int8)
            tensors[f"{stem}.weight_scale"] = scale.bfloat16()
    save_file({name: each.contiguous() for name, each in tensors.items()}, target / "m.safetensors")
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": method,
        "bits": 4,
        "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "int"}}},
    }
    (target / "config.json").write_text(json.dumps(config))
    return target


def test_int4_is_rejected_on_a_gpu(model_folder: Callable[[str], Path]) -> None:
    """Each step would unpack all weights; the message recommends fp8."""
    config = load_config(model_folder(FAMILY))
    with pytest.raises(ModelLoadError, match=r"INFERENCE_DTYPE is int4.*INFERENCE_DTYPE=fp8"):
        weight_type("int4", config, torch.device("cuda"))
