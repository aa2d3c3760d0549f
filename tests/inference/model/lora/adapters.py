"""Writes LoRA adapters in PEFT's format, and models that they are merged into."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

RANK, ALPHA = 4, 12.0
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def write_adapter(model: Path, folder: Path, seed: int, **config: object) -> Path:
    """A random adapter for every matrix of a model's layers whose name ends in a projection."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, weight in load_file(model / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if weight.dim() == 2 and module.endswith((*PROJECTIONS, "qkv_proj", "gate_up_proj")):
            rows, columns = weight.shape
            prefix = f"base_model.model.{module}"
            down = torch.randn(RANK, columns, generator=generator) * columns**-0.5
            tensors[f"{prefix}.lora_A.weight"] = down
            up = torch.randn(rows, RANK, generator=generator) * weight.std() * 0.7
            tensors[f"{prefix}.lora_B.weight"] = up
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    content = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none", **config}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    return folder


def merge(model: Path, adapter: Path, folder: Path) -> Path:
    """A copy of a model with an adapter's products added to its weights."""
    shutil.copytree(model, folder)
    weights = load_file(model / "model.safetensors")
    tensors = load_file(adapter / "adapter_model.safetensors")
    for name in list(tensors):
        if name.endswith("lora_A.weight"):
            up = tensors[name.replace("lora_A", "lora_B")]
            target = name.removeprefix("base_model.model.").replace(".lora_A", "")
            weights[target] = weights[target] + ALPHA / RANK * (up @ tensors[name])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
