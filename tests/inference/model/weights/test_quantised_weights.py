"""Quantised checkpoints, packed here as the libraries that write them do."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from inference.engine.errors import ModelLoadError
from inference.model.layers.grouped import GroupedWeight
from inference.model.loading import EngineOptions, load_engine
from inference.model.native import library
from inference.model.native.packing import PackedMatrix
from inference.model.weights.weights import Weights, open_weights
from tests.inference.model.families import reference_logits
from tests.inference.model.test_families import LENGTH, logits_of
from tests.inference.model.test_parity import prompts

OUTPUTS, INPUTS, GROUP = 16, 64, 32
SHAPE = (OUTPUTS, INPUTS)
AWQ_PLACES = (0, 2, 4, 6, 1, 3, 5, 7)
"""The value at each place of a word, from the lowest bits on."""


@pytest.fixture
def parts() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes [outputs, inputs], scales and zero points [outputs, groups], and the weights."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, SHAPE, generator=generator)
    zeros = torch.randint(1, 16, (OUTPUTS, INPUTS // GROUP), generator=generator)
    scales = torch.rand(OUTPUTS, INPUTS // GROUP, generator=generator).half()
    group = torch.arange(INPUTS) // GROUP
    weights = (codes - zeros[:, group]) * scales.float()[:, group]
    return codes, scales, zeros, weights


def packed(values: torch.Tensor) -> torch.Tensor:
    """[rows, columns] of four bits to int32 [rows, columns / 8], the lowest bits first."""
    words = values.view(len(values), -1, 8).long() << torch.arange(0, 32, 4)
    total = words.sum(-1)
    return torch.where(total >= 2**31, total - 2**32, total).int()


def checkpoint(folder: Path, method: dict[str, Any], **tensors: torch.Tensor) -> Weights:
    """Opens a folder with the tensors of one matrix `m`."""
    save_file(
        {f"m.{name}": each.contiguous() for name, each in tensors.items()}, folder / "m.safetensors"
    )
    (folder / "config.json").write_text(json.dumps({"quantization_config": method}))
    return open_weights(folder)


def kept(opened: Weights, shape: tuple[int, int] = SHAPE) -> GroupedWeight:
    """The matrix with its integers and scales, whose weights must be exactly those expanded."""
    weight = opened.take_grouped("m.weight", shape)
    assert weight is not None
    assert torch.equal(weight.expand(), opened.take("m.weight", shape).float())
    packed_weight = PackedMatrix(weight, None, "int4", library.lanes())
    found = torch.empty(shape)
    library.load().weir_expand_rows(
        ctypes.byref(packed_weight.pointers),
        (ctypes.c_int32 * shape[0])(*range(shape[0])),
        *shape,
        ctypes.c_void_p(found.data_ptr()),
    )
    torch.testing.assert_close(found, weight.expand(), rtol=1e-6, atol=1e-5)
    return weight


@pytest.mark.parametrize("version", [1, 2])
def test_gptq(version: int, parts: tuple[torch.Tensor, ...], tmp_path: Path) -> None:
    """Both versions of the format, with the inputs in another order (desc_act)."""
    codes, scales, zeros, weights = parts
    order = torch.randperm(INPUTS, generator=torch.Generator().manual_seed(1))
    group = (torch.arange(INPUTS) // GROUP)[order]
    weights = (codes - zeros[:, group]) * scales.float()[:, group]
    method = {"quant_method": "gptq", "bits": 4, "group_size": GROUP}
    if version == 2:
        method["checkpoint_format"] = "gptq_v2"
    opened = checkpoint(
        tmp_path,
        method,
        qweight=packed(codes).t(),  # words of inputs
        qzeros=packed(zeros.t() - int(version == 1)),
        scales=scales.t(),
        g_idx=group.int(),
    )
    assert "m.weight" in opened
    torch.testing.assert_close(opened.take("m.weight", SHAPE), weights)
    assert opened.unused == []
    assert opened.stored_bits == kept(opened).bits == 4


def test_gptq_with_uneven_groups_is_expanded(
    parts: tuple[torch.Tensor, ...], tmp_path: Path
) -> None:
    """The kernels need groups of whole blocks."""
    codes, scales, zeros, _ = parts
    group = (torch.arange(INPUTS) > 7).int()
    opened = checkpoint(
        tmp_path,
        {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "checkpoint_format": "gptq_v2"},
        qweight=packed(codes).t(),
        qzeros=packed(zeros.t()),
        scales=scales.t(),
        g_idx=group,
    )
    assert opened.take_grouped("m.weight", SHAPE) is None
    weights = (codes - zeros[:, group]) * scales.float()[:, group]
    torch.testing.assert_close(opened.take("m.weight", SHAPE), weights)


def test_awq(parts: tuple[torch.Tensor, ...], tmp_path: Path) -> None:
    """Words of eight outputs in the order of its kernels."""
    codes, scales, zeros, weights = parts

    def words(values: torch.Tensor) -> torch.Tensor:
        return packed(values.view(len(values), -1, 8)[:, :, AWQ_PLACES].reshape(values.shape))

    opened = checkpoint(
        tmp_path,
        {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True},
        qweight=words(codes.t()),
        qzeros=words(zeros.t()),
        scales=scales.t(),
    )
    torch.testing.assert_close(opened.take("m.weight", SHAPE), weights)
    assert opened.stored_bits == kept(opened).bits == 4


@pytest.mark.parametrize("symmetric", [True, False])
def test_compressed_tensors_packed(
    symmetric: bool, parts: tuple[torch.Tensor, ...], tmp_path: Path
) -> None:
    """w4a16, with zero points and without."""
    codes, scales, zeros, weights = parts
    tensors = {"weight_packed": packed(codes), "weight_scale": scales}
    tensors["weight_shape"] = torch.tensor(SHAPE)
    if symmetric:
        group = torch.arange(INPUTS) // GROUP
        weights = (codes - 8) * scales.float()[:, group]
    else:
        tensors["weight_zero_point"] = packed(zeros.t()).t()
    method = {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": GROUP}}},
    }
    opened = checkpoint(tmp_path, method, **tensors)
    torch.testing.assert_close(opened.take("m.weight", SHAPE), weights)
    assert opened.unused == []
    assert opened.stored_bits == kept(opened).bits == 4
    assert (kept(opened).zeros is None) == symmetric


@pytest.mark.parametrize("kind", ["block", "channel", "tensor", "int8"])
def test_eight_bits(kind: str, tmp_path: Path) -> None:
    """FP8 by block (the last ones smaller), output or tensor; w8a8 by output."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(20, 40, generator=generator)
    scale = {"block": torch.rand(2, 3), "tensor": torch.tensor(0.5)}.get(kind, torch.rand(20, 1))
    method: dict[str, Any] = {"quant_method": "fp8", "weight_block_size": [16, 16]}
    name = "weight_scale_inv" if kind == "block" else "weight_scale"
    stored = weight.to(torch.float8_e4m3fn)
    if kind == "int8":
        method = {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {}}}}
        stored = (weight * 40).to(torch.int8)
    wide = scale
    if kind == "block":
        wide = scale.repeat_interleave(16, 0)[:20].repeat_interleave(16, 1)[:, :40]
    opened = checkpoint(tmp_path, method, weight=stored, **{name: scale})
    found = opened.take("m.weight", (20, 40))
    assert found.dtype is torch.bfloat16
    assert torch.equal(found, (stored.float() * wide).bfloat16())
    weight = opened.take_grouped("m.weight", (20, 40))
    if kind == "int8":
        assert weight is not None
        assert opened.stored_bits == weight.bits == 8
        assert torch.equal(weight.expand(), stored.float() * wide)
    else:
        assert weight is None
        assert opened.stored_bits is None


def test_gpt_oss_in_mxfp4_computes_what_its_values_do(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """The packed experts against an unpacked checkpoint with the same values, and the reference."""
    weights = load_file(model_folder("gpt-oss") / "model.safetensors")
    plain, quantised = dict(weights), dict(weights)
    for name, tensor in weights.items():
        if name.endswith(("gate_up_proj", "down_proj")) and "experts" in name:
            padded = torch.nn.functional.pad(tensor.transpose(1, 2), (0, -tensor.shape[1] % 32))
            blocks, scales, values = to_mxfp4(padded)
            if padded.shape[-1] != tensor.shape[1]:
                continue  # no whole blocks
            del quantised[name]
            quantised[f"{name}_blocks"], quantised[f"{name}_scales"] = blocks, scales
            plain[name] = values.transpose(1, 2).contiguous()
    assert len(quantised) > len(plain)
    [prompt] = prompts(LENGTH)
    logits = []
    for number, (tensors, method) in enumerate(((plain, None), (quantised, "mxfp4"))):
        folder = tmp_path / str(number)
        folder.mkdir()
        save_file(tensors, folder / "model.safetensors")
        config = json.loads((model_folder("gpt-oss") / "config.json").read_text())
        if method is not None:
            config["quantization_config"] = {"quant_method": method}
        (folder / "config.json").write_text(json.dumps(config))
        options = EngineOptions.defaults(folder, "m")
        options = replace(options, device="cpu", dtype="float32", kv_cache_tokens=512, threads=1)
        logits.append(logits_of(load_engine(options), prompt))
    torch.testing.assert_close(*logits, rtol=0, atol=1e-5)  # sums depend on memory alignment
    expected = reference_logits("gpt-oss", prompt)[-1]
    assert torch.cosine_similarity(logits[0], expected, dim=0) > 0.9


def to_mxfp4(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Blocks [..., groups, 16], scales [..., groups] and the rounded values [..., size]."""
    table = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    grouped = values.unflatten(-1, (-1, 32))
    exponents = torch.floor(torch.log2(grouped.abs().amax(-1).clamp(min=1e-20))) - 2
    scaled = grouped / torch.exp2(exponents).unsqueeze(-1)
    codes = (scaled.abs().unsqueeze(-1) - table).abs().argmin(-1)
    rounded = table[codes] * scaled.sign() * torch.exp2(exponents).unsqueeze(-1)
    codes = codes + 8 * (scaled < 0)
    blocks = (codes[..., 0::2] | (codes[..., 1::2] << 4)).to(torch.uint8)
    return blocks, (exponents + 127).to(torch.uint8), rounded.flatten(-2)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"quant_method": "bitsandbytes"}, "'bitsandbytes' is not supported; supported are fp8"),
        ("gptq", "None is not supported"),
        ({"quant_method": ["gptq"]}, r"\['gptq'\] is not supported"),
    ],
)
def test_another_method_is_refused_by_name(method: Any, message: str, tmp_path: Path) -> None:
    """With the supported ones."""
    with pytest.raises(ModelLoadError, match=f"quantization_config.quant_method {message}"):
        checkpoint(tmp_path, method, weight=torch.zeros(2))


def test_bad_parts_are_refused(parts: tuple[torch.Tensor, ...], tmp_path: Path) -> None:
    """Sizes that do not fit together, and bits that are not supported, by name."""
    codes, scales, zeros, _ = parts
    tensors = {"qweight": packed(codes).t(), "qzeros": packed(zeros.t()), "scales": scales[:9].t()}
    opened = checkpoint(tmp_path, {"quant_method": "gptq", "bits": 4}, **tensors)
    with pytest.raises(ModelLoadError, match=r"m\.weight cannot be expanded, its parts do not fit"):
        opened.take("m.weight", SHAPE)
    opened = checkpoint(tmp_path, {"quant_method": "gptq", "bits": 3}, **tensors)
    with pytest.raises(ModelLoadError, match=r"must have 4 or 8 bits\. Given: 3"):
        opened.take("m.weight", SHAPE)
