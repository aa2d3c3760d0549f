"""Reads the files of a LoRA adapter in PEFT's format: adapter_config.json and safetensors."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open

from inference.engine.errors import InvalidAdapter, ModelLoadError
from inference.model.config_files import Fields, Positive, Size, parse_fields, read_json

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PATTERNS = (CONFIG_FILE, WEIGHTS_FILE)

_NAME = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])(\.default)?\.weight")
_TYPES = ("F32", "F16", "BF16")


class AdapterFields(Fields):
    """adapter_config.json; what changes more than the products of matrices is refused."""

    peft_type: Literal["LORA"]
    r: Size
    lora_alpha: Annotated[Positive, Field(strict=False)]
    use_rslora: bool = False
    use_dora: Literal[False] = False
    bias: Literal["none"] = "none"
    fan_in_fan_out: Literal[False] = False
    modules_to_save: list[str] = Field([])
    alpha_pattern: dict[str, float] = Field({})


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFiles:
    """The matrices of an adapter by the module's name in the checkpoint."""

    downs: Mapping[str, torch.Tensor]
    """[rank, num_inputs] (PEFT's A)."""
    ups: Mapping[str, torch.Tensor]
    """[num_outputs, rank] (PEFT's B), multiplied by the scale."""
    sha256: str


def read_adapter(folder: Path, max_rank: int) -> AdapterFiles:
    """The adapter in a folder. Raises InvalidAdapter that names file, field and value."""
    path = folder / CONFIG_FILE
    try:
        fields = parse_fields(AdapterFields, read_json(path, required=True), path)
    except ModelLoadError as error:
        raise InvalidAdapter(str(error)) from error
    if fields.modules_to_save:
        raise InvalidAdapter(
            f"{path}: modules_to_save must be empty, because only matrices of layers can be "
            f"adapted. Given: {', '.join(fields.modules_to_save)!r:.80}"
        )
    pairs = _read_pairs(folder / WEIGHTS_FILE)
    downs, ups = {}, {}
    for module, sides in pairs.items():
        if len(sides) != 2:
            raise InvalidAdapter(f"{folder / WEIGHTS_FILE}: {module} needs lora_A and lora_B")
        down, up = sides["A"], sides["B"]
        if down.dim() != 2 or up.dim() != 2 or not up.shape[1] == down.shape[0] > 0:
            raise InvalidAdapter(f"{folder / WEIGHTS_FILE}: matrices of {module} do not match")
        rank = down.shape[0]
        if rank > max_rank:
            raise InvalidAdapter(
                f"{folder}: the rank must be at most {max_rank} (INFERENCE_MAX_LORA_RANK). "
                f"Given: {rank}"
            )
        alpha = _alpha(fields, module)
        downs[module] = down
        ups[module] = up.float() * (alpha / math.sqrt(rank) if fields.use_rslora else alpha / rank)
    return AdapterFiles(downs=downs, ups=ups, sha256=_digest(folder))


def _alpha(fields: AdapterFields, module: str) -> float:
    for pattern, alpha in fields.alpha_pattern.items():
        try:
            if re.fullmatch(rf"(.*\.)?({pattern})", module):
                return alpha
        except re.error as error:
            raise InvalidAdapter(
                f"{CONFIG_FILE}: alpha_pattern must have regular expressions. "
                f"Given: {pattern!r:.80}: {error}"
            ) from error
    return fields.lora_alpha


def _read_pairs(path: Path) -> dict[str, dict[str, torch.Tensor]]:
    if not path.is_file():
        raise InvalidAdapter(f"{path} is missing; other formats are not supported")
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # a file of safetensors is no mapping
                match = _NAME.fullmatch(name)
                if match is None or file.get_slice(name).get_dtype() not in _TYPES:
                    raise InvalidAdapter(f"{path}: tensor {name:.200} is not supported")
                pairs.setdefault(match["module"], {})[match["side"]] = file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise InvalidAdapter(f"{path} is not a safetensors file: {error}") from error
    if not pairs:
        raise InvalidAdapter(f"{path} has no matrices")
    return pairs


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in PATTERNS:
        content = (folder / name).read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()
